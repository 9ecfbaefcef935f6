// Reading the header of a GGUF file from beginning to end, within bounds.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "failure.h"
#include "gguf.h"
#include "input.h"

namespace nola::files {

// Reads through a window of fixed size.
class GgufCursor {
public:
    explicit GgufCursor(const Input& input) : input_(input) {}

    std::uint64_t position() const { return position_; }
    // Bytes from here to the end of the file.
    std::uint64_t left() const { return input_.size() - position_; }

    // Says of what key something is that is refused.
    void enter(const std::string& key) { key_ = key; }
    void leave() { key_.clear(); }
    // A refusal of a field, or of the key that is being read.
    Failure refusal(std::string_view message, std::string_view field = "") const;

    // A little-endian number, or a bool.
    template <class Number>
    Number number() {
        char bytes[sizeof(Number)];
        take(bytes, sizeof bytes);
        Number value;
        std::memcpy(&value, bytes, sizeof value);
        return value;
    }
    // So many bytes.
    std::string fixed(std::size_t count);
    // A name: a short string of UTF-8.
    std::string text(const char* what, std::uint64_t longest);
    // A metadata value of the type that is said first.
    GgufValue value();

private:
    void take(char* to, std::size_t count);
    // Refuses `count` times `size` bytes that the file does not have.
    void need(std::uint64_t count, std::uint64_t size, const std::string& what) const;
    // Whether a value is short, and there is room for it among those that are kept.
    bool keeps(std::uint64_t length, std::uint64_t bytes);
    GgufNumber scalar(std::uint32_t kind);
    GgufValue string();
    GgufValue array();

    const Input& input_;
    std::string window_;
    std::uint64_t window_start_ = 0;
    std::uint64_t position_ = 0;
    std::string key_;
    std::uint64_t strings_ = 0;
    std::uint64_t kept_ = 0;
};

}  // namespace nola::files
