// Adapters as commands take them.
#pragma once

#include <memory>
#include <string>

#include "files/input.h"

namespace nola::program {

// Opens a packed adapter. Throws files::Failure that says what to do about one that is none.
std::shared_ptr<const files::FileInput> open_adapter(const std::string& path);

}  // namespace nola::program
