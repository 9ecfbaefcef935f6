// Text from files, made safe to print.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nola::files {

// Whether text is UTF-8 without anything that would not show: control and format characters,
// separators other than the space, characters for private use.
bool is_printable(std::string_view text);

// Text with what would not show escaped, and at most so many characters long.
std::string printable(std::string_view text, std::size_t limit = 120);

}  // namespace nola::files
