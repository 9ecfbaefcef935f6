// Text that fits the terminal: wrapped between words, as the Python command line does it.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace nola::program {

// A space at which no line ends.
inline constexpr std::string_view kGlue = "\xC2\xA0";

// Columns that a line may have: those of the terminal, at most 100, or 80 without one.
std::size_t width();

// Text padded with spaces to so many characters.
std::string padded(std::string_view text, std::size_t columns);

// Text that is not broken, such as a command to be copied.
std::string whole(std::string_view text);

// Text in lines of so many columns, broken between words; a longer word is broken after a slash,
// dot or underscore, or not at all.
std::vector<std::string> wrap(std::string_view text, std::size_t columns);

// Terms and what they mean, in two columns; a long term has a line of its own.
std::string definitions(const std::vector<std::pair<std::string, std::string>>& rows);

// Prints a line on standard output or, for warnings, on standard error; wrapped where that is a
// terminal. Programs that read it get one line.
void say(std::string_view text);
void warn(std::string_view text);

// Prints text as it is.
void print(std::string_view text);

}  // namespace nola::program
