// Tells an earlier output of a merge from anything else, without reading its weights.
#pragma once

#include <string>

#include "files/checkpoint.h"

namespace nola::merging {

// What keeps a path from being replaced: no merge into such a base has written it. Empty of one
// that may be.
std::string obstacle(files::Checkpoint& base, const std::string& path);

}  // namespace nola::merging
