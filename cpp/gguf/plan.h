// A merge into a GGUF file that was checked completely, before anything is written.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "adapters/weighted_adapter.h"
#include "files/gguf.h"
#include "merge/plan.h"

namespace nola::gguf {

class Plan {
public:
    // Throws files::Failure where adapters and base do not fit together, or a tensor has a type
    // that is not written here. Both must outlive the plan.
    Plan(const files::GgufFile& base, const std::vector<adapters::WeightedAdapter>& adapters);

    const files::GgufFile& base() const { return base_; }
    const std::vector<adapters::WeightedAdapter>& adapters() const { return adapters_; }
    // Of a tensor that is merged into: all of it, in one; null of any other.
    const std::vector<merging::Segment>* segments(const std::string& tensor) const;
    // How many tensors are merged into.
    std::size_t merged() const { return merges_.size(); }
    // Of what adapters are merged into.
    std::string base_fingerprint() const;

private:
    const files::GgufFile& base_;
    const std::vector<adapters::WeightedAdapter>& adapters_;
    std::map<std::string, std::vector<merging::Segment>> merges_;
};

}  // namespace nola::gguf
