// What kind of file something is, by its first bytes.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "input.h"

namespace nola::files {

inline constexpr std::string_view kGgufMagic = "GGUF";

// The first bytes, as many as tell what kind of file something is.
std::string beginning_of(const Input& input);

// Refuses a file that stands for another one, which Git has not fetched.
void refuse_lfs_pointer(std::string_view begin, const Input& input);

// Whether a path is a file that begins as a GGUF file does.
bool is_gguf(const std::string& path);

}  // namespace nola::files
