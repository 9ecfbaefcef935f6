// What a file is refused with.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace nola::files {

// A refusal: one printable line that begins with the file's name and the field in it.
class Failure : public std::runtime_error {
public:
    // Either of the first two may be empty.
    Failure(std::string_view file, std::string_view field, std::string_view message);
};

}  // namespace nola::files
