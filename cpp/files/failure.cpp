#include "failure.h"

#include "printable.h"

namespace nola::files {

namespace {

constexpr std::size_t kLongestFile = 240;
constexpr std::size_t kLongest = 1000;

std::string line(std::string_view file, std::string_view field, std::string_view message) {
    std::string text;
    if (!file.empty()) {
        text += printable(file, kLongestFile) + ": ";
    }
    if (!field.empty()) {
        text += printable(field) + ": ";
    }
    text += message;
    return printable(text, kLongest);
}

}  // namespace

Failure::Failure(std::string_view file, std::string_view field, std::string_view message,
                 const char* type)
    : std::runtime_error(line(file, field, message)),
      file_(printable(file, kLongest)),
      field_(printable(field, kLongest)),
      message_(printable(message, kLongest)),
      type_(type) {}

}  // namespace nola::files
