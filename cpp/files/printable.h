// Text from files, made safe to print.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace nola::files {

// Whether text is UTF-8 without anything that would not show: control and format characters,
// separators other than the space, characters for private use.
bool is_printable(std::string_view text);

bool is_utf8(std::string_view text);

// Text in which U+FFFD stands for what is no UTF-8.
std::string with_replacements(std::string_view text);

// Characters of UTF-8.
std::size_t characters(std::string_view text);

// A number in as few digits as tell it from others of its type, as Python writes it: plainly from
// 1e-4 to 1e16.
std::string shortest(double value);
std::string shortest(float value);

// Text with what would not show escaped, and at most so many characters long.
std::string printable(std::string_view text, std::size_t limit = 120);

}  // namespace nola::files
