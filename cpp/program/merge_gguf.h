// `nola merge` into a GGUF file.
#pragma once

#include <string>

#include "options.h"

namespace nola::program {

// What commands say of a base that is a GGUF file.
inline constexpr const char* kGgufNote =
    "the base was not checked: adapters record no fingerprint of a GGUF file";

// Throws UsageFailure if the check of a fingerprint is asked for, of which a GGUF file has none.
void refuse_to_check_gguf(const Arguments& arguments, const std::string& command);

// Merges, and prints what was done; `expected` is the SHA-256 that the result must have, if any.
int merge_into_gguf(const Arguments& arguments, const std::string& expected);

}  // namespace nola::program
