// How the weights of a model are named and laid out in GGUF, for each architecture.
//
// Names are those of llama.cpp's converters. Only what stands here is used; nothing is guessed from
// a likeness of names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "files/gguf.h"

namespace nola::gguf {

// One value of `general.architecture`.
struct Architecture {
    const char* name;
    // Module within a block -> tensor within a block.
    std::vector<std::pair<std::string_view, std::string_view>> modules;
    // What the module that holds the blocks may be called.
    std::vector<std::string_view> blocks;
    // Within a head of attn_q and attn_k, the rows of its two halves alternate.
    bool is_interleaved = false;
};

// The tensor that holds a module's weight, and the heads that share its rows; 0: these are in the
// Hugging Face model's order.
struct Place {
    std::string tensor;
    std::uint64_t heads = 0;
};

// Attention heads: one number for all blocks, or one for each.
struct Heads {
    std::vector<std::uint64_t> counts;
    bool is_of_each = false;

    // 0 if it is not known.
    std::uint64_t of(std::uint64_t block) const;
};

// An architecture and its attention heads.
class Model {
public:
    // Throws files::Failure if a file is no whole model of a known architecture.
    explicit Model(const files::GgufFile& file);

    const Architecture& architecture() const { return *architecture_; }

    // The place of a module of the Hugging Face model. Throws files::Mismatch, naming the adapter,
    // if the architecture has no such module, or its heads are not known.
    Place place(const std::string& module, const std::string& adapter) const;

private:
    const Architecture* architecture_;
    Heads heads_;
    Heads key_heads_;
};

}  // namespace nola::gguf
