// Which tensors of a GGUF file an adapter is for.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "adapters/belongs.h"
#include "architectures.h"
#include "files/gguf.h"
#include "merge/plan.h"

namespace nola::gguf {

// The tensor of a module's weight, (outputs, inputs).
struct Target {
    const files::TensorInfo* tensor = nullptr;
    std::uint64_t head_rows = 0;  // of one head; 0: rows are in the Hugging Face model's order

    std::uint64_t outputs() const { return tensor->shape[0]; }
    std::uint64_t inputs() const { return tensor->shape[1]; }
};

// An adapter's share in the target of one of its modules.
merging::Term term_of(const adapters::WeightedAdapter& adapter, const adapters::Module& module,
                      const Target& target);

// Refuses an adapter with more than matrices, for which GGUF has no place here.
void refuse_whole_tensors(const adapters::Named& adapter);

// The targets of an adapter's modules, in their order. Throws files::Failure where one is missing
// or has another shape than the adapter was made for, and if the adapter brings whole tensors.
std::vector<Target> targets_of(const adapters::Named& adapter, const files::GgufFile& base,
                               const Model& model);

}  // namespace nola::gguf
