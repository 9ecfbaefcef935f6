// The field `tensors` of a configuration.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "config.h"

namespace nola::adapters {

// Reads the field, which may be null. Throws Failure, naming `file`, if it is not an object of
// texts, one of them does not name a part of a tensor, or two overlap.
std::map<std::string, TensorPart> parse_parts(yyjson_val* field, std::string_view file);

}  // namespace nola::adapters
