// An adapter as it is used: where it came from, and the weight of its factors.
#pragma once

#include <string>

#include "nola_adapter.h"

namespace nola::adapters {

struct WeightedAdapter {
    NolaAdapter adapter;
    std::string path;
    double weight = 1;

    // weight * s in double.
    double scaling() const { return weight * adapter.config.scaling(); }
    std::size_t rank() const { return static_cast<std::size_t>(adapter.config.r); }
};

}  // namespace nola::adapters
