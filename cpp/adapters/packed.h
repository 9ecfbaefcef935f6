// Packed adapters (docs/adapter-format.md, *Packed*).
#pragma once

#include <memory>

#include "files/input.h"
#include "files/json.h"
#include "nola_adapter.h"

namespace nola::adapters {

// Reads a packed adapter into memory; of whole tensors only their names. Throws files::Failure if
// the file is not what it claims.
NolaAdapter read_packed(const std::shared_ptr<const files::Input>& input);

// The JSON of a packed adapter that can be read: `config` and `modules`.
files::Json read_about(const std::shared_ptr<const files::Input>& input);

}  // namespace nola::adapters
