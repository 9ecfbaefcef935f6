// What every output is that is made of a base and adapters.
#pragma once

#include <string>
#include <vector>

#include "adapters/weighted_adapter.h"
#include "files/output.h"

namespace nola::merging {

// An output at `target`, a file, which may be none of its inputs.
inline files::Output::Plan output_plan(const std::string& target, const std::string& base,
                                       const std::vector<adapters::WeightedAdapter>& adapters,
                                       bool force) {
    files::Output::Plan plan;
    plan.target = target;
    plan.inputs.push_back(base);
    for (const adapters::WeightedAdapter& adapter : adapters) {
        plan.inputs.push_back(adapter.path);
    }
    plan.force = force;
    return plan;
}

}  // namespace nola::merging
