// Files for tests, made in memory.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "files/failure.h"
#include "files/input.h"
#include "libdeflate.h"

namespace nola::test {

// The message of the Failure that a call throws; empty if it throws none.
template <class Call>
std::string refusal(const Call& call) {
    try {
        call();
    } catch (const files::Failure& failure) {
        return failure.what();
    }
    return "";
}

// Bytes as an input; they must outlive it.
inline std::shared_ptr<const files::Input> memory(const std::string& bytes) {
    return std::make_shared<files::MemoryInput>("f", bytes.data(), bytes.size());
}

inline std::string little_endian(std::size_t number, std::size_t bytes) {
    std::string text;
    for (std::size_t i = 0; i < bytes; ++i) {
        text += static_cast<char>(i < sizeof number ? (number >> (8 * i)) & 255 : 0);
    }
    return text;
}

inline std::string safetensors(const std::string& header, const std::string& data) {
    return little_endian(header.size(), 8) + header + data;
}

// A zlib stream of one block that is not compressed.
inline std::string as_zlib(const std::string& text) {
    std::string stream("\x78\x01\x01", 3);
    stream += little_endian(text.size(), 2) + little_endian(text.size() ^ 0xFFFF, 2) + text;
    const std::uint32_t sum = libdeflate_adler32(1, text.data(), text.size());
    for (int shift = 24; shift >= 0; shift -= 8) {
        stream += static_cast<char>((sum >> shift) & 255);
    }
    return stream;
}

}  // namespace nola::test
