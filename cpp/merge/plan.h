// A merge that was checked completely, before anything is written.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "adapters/weighted_adapter.h"
#include "files/checkpoint.h"

namespace nola::merging {

using adapters::WeightedAdapter;

// One adapter's share in a stored matrix: in the lines [begin, end) of it, each of which holds an
// output. Lines are rows, or columns where the weight is stored as (in, out).
struct Term {
    const WeightedAdapter* adapter = nullptr;
    const adapters::Module* module = nullptr;
    std::uint64_t outputs = 0;
    std::uint64_t inputs = 0;
    bool transposed = false;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    // Rows of an attention head whose rotated pairs lie side by side in the stored matrix, as GGUF
    // has them for LLaMA; 0: rows are in the model's order.
    std::uint64_t head_rows = 0;

    double scaling() const { return adapter->scaling(); }
    std::size_t rank() const { return adapter->rank(); }
};

// Lines of a stored matrix in which the same terms change everything.
struct Segment {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    bool is_whole = false;  // all of the matrix, whatever its terms take for lines
    std::vector<Term> terms;
};

class Plan {
public:
    // Throws files::Failure where adapters and base do not fit together, or need what this program
    // does not do. Both must outlive the plan.
    Plan(const files::Checkpoint& base, const std::vector<WeightedAdapter>& adapters,
         bool check_base);

    const files::Checkpoint& base() const { return base_; }
    const std::vector<WeightedAdapter>& adapters() const { return adapters_; }
    // Of a tensor that is merged into; empty of any other.
    const std::vector<Segment>& segments(const std::string& tensor) const;
    // How many tensors are merged into.
    std::size_t merged() const { return merges_.size(); }
    // Of what adapters are merged into.
    std::string base_fingerprint() const;

private:
    using Terms = std::map<std::string, std::vector<Term>>;

    void add(const WeightedAdapter& adapter, bool check_base, Terms& terms) const;
    void check_tied() const;
    void check_orientations() const;

    const files::Checkpoint& base_;
    const std::vector<WeightedAdapter>& adapters_;
    std::map<std::string, std::vector<Segment>> merges_;
};

}  // namespace nola::merging
