// The types of tensors in GGUF files, which are ggml's (`ggml.h`, `ggml-common.h`).
#pragma once

#include <cstdint>

namespace nola::files {

// Rows are cut into blocks, each of which takes the same number of bytes.
struct GgufType {
    const char* name;
    std::uint32_t code;   // in a file
    std::uint64_t block;  // elements of a block
    std::uint64_t bytes;  // of a block
};

// Null if no type has the code.
const GgufType* gguf_type(std::uint32_t code);

}  // namespace nola::files
