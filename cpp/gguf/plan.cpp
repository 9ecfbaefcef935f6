#include "plan.h"

#include "adapters/base_fingerprint.h"
#include "files/failure.h"
#include "merge/matrix.h"
#include "targets.h"

namespace nola::gguf {

namespace {

using adapters::WeightedAdapter;

void check_type(const files::TensorInfo& tensor, const files::GgufFile& base) {
    if (!merging::is_mergeable(tensor.type)) {
        throw files::Mismatch(
            base.input().name(), tensor.name,
            "has type " + tensor.type +
                ", which only llama.cpp's own quantiser writes. Leave the base as it is and load "
                "the adapter beside it (nola export gguf-lora), or write merged tensors as another "
                "type with nola-edge merge of the Python package: --outtype f16, bf16 or q8_0");
    }
}

}  // namespace

Plan::Plan(const files::GgufFile& base, const std::vector<WeightedAdapter>& adapters)
    : base_(base), adapters_(adapters) {
    const Model model(base);
    for (const WeightedAdapter& adapter : adapters) {
        const std::vector<Target> targets =
            targets_of({adapter.adapter, adapter.path}, base, model);
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const files::TensorInfo& tensor = *targets[i].tensor;
            check_type(tensor, base);
            auto& segments = merges_[tensor.name];
            if (segments.empty()) {
                segments.push_back({0, targets[i].outputs(), true, {}});
            }
            segments[0].terms.push_back(term_of(adapter, adapter.adapter.modules[i], targets[i]));
        }
    }
}

const std::vector<merging::Segment>* Plan::segments(const std::string& tensor) const {
    const auto found = merges_.find(tensor);
    return found == merges_.end() ? nullptr : &found->second;
}

std::string Plan::base_fingerprint() const {
    std::vector<std::string> names;
    std::vector<files::StoredTensor> stored;
    for (const auto& merge : merges_) {
        names.push_back(merge.first);
        stored.push_back({&base_.input(), base_.find(merge.first)});
    }
    return adapters::base_fingerprint(names, stored);
}

}  // namespace nola::gguf
