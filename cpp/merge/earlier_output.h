// Tells an earlier output of a merge from anything else, without reading its weights.
#pragma once

#include <string>

#include "files/checkpoint.h"

namespace nola::merging {

// What keeps a path from being replaced: no merge into such a base has written it. Empty of one
// that may be.
std::string obstacle(files::Checkpoint& base, const std::string& path);

// Says that a file holds other tensors than an output, by name and shape; empty if it does not.
using Tensors = std::vector<const files::TensorInfo*>;
std::string other_tensors(const Tensors& wanted, const Tensors& found);

}  // namespace nola::merging
