// Adapters as one exact LoRA for llama.cpp (`--lora`) and Ollama (`ADAPTER`).
//
// A and B are the expanded factors; rows of B are in the order of the base's tensor. llama.cpp
// scales every product by alpha / r, with one alpha for the file and the r of each tensor
// (`llama-adapter.h`), and takes an alpha of 0 for a factor of 1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/weighted_adapter.h"
#include "files/gguf.h"

namespace nola::exporting {

struct GgufLoraOptions {
    std::string output;
    bool force = false;
    bool is_half = false;  // A and B as F16, which rounds them
    int num_threads = 0;
};

// Writes the LoRA for a base, with the bytes of `nola-edge export gguf-lora`, and returns their
// number. Several adapters become one LoRA, whose rank is the sum of theirs. Throws files::Failure
// if adapters and base do not fit, a number is not finite, or the output cannot be written; nothing
// is left then.
std::uint64_t export_gguf_lora(const files::GgufFile& base,
                               const std::vector<adapters::WeightedAdapter>& adapters,
                               const GgufLoraOptions& options);

}  // namespace nola::exporting
