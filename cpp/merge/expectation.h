// What a result must be before it is put in place: a caller's hash, and what an adapter records.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "adapters/expected.h"
#include "adapters/weighted_adapter.h"

namespace nola::merging {

using adapters::WeightedAdapter;

struct Expectation {
    std::string sha256;  // what the caller says; empty: any
    // What the adapter says of this base; the result must be one of them, if there are any.
    std::vector<adapters::ExpectedResult> results;
    std::string adapter;  // where that comes from, for errors
    std::string note;  // why the adapter's word does not apply; empty if it does, or says nothing
};

// The base of a merge, as results of one are told apart.
struct ExpectedBase {
    std::string kind;  // "folder", "safetensors" or "gguf"
    std::function<std::string()> fingerprint;
};

// What is expected of a merge: `sha256` by the caller, and by the adapter if its word counts.
Expectation expectation(const std::vector<WeightedAdapter>& adapters, const ExpectedBase& base,
                        const std::string& sha256, bool check_result);

// Throws Mismatch if the result at `path`, which was to go to `output`, is another than expected.
// Returns what the adapter's publisher calls the base of which it expects this result, or nothing.
std::string check_result(const Expectation& expected, const std::string& path,
                         const std::string& output, int num_threads);

}  // namespace nola::merging
