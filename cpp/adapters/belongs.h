// Whether an adapter's modules have the shapes of a base's weights, whatever file holds these.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "files/safetensors.h"
#include "nola_adapter.h"

namespace nola::adapters {

// An adapter and where it came from, to be named in errors.
struct Named {
    const NolaAdapter& adapter;
    const std::string& path;
};

// Of an adapter's modules, in their order.
struct Sizes {
    std::vector<std::uint64_t> outputs;
    std::vector<std::uint64_t> inputs;
};

// Refuses a rank that would make the factors of a matrix of `file` larger than the matrix.
void check_factor_sizes(const Named& adapter, const files::TensorInfo& weight,
                        const std::string& file);

// Refuses a base whose modules have other shapes than those the adapter was made for.
void check_shapes(const Named& adapter, const Sizes& sizes, const std::string& base);

// Refuses a base that has biases of which an adapter lost the trained ones; `weights` are the names
// of its modules' tensors there, and `has` tells whether the base has a tensor.
void check_biases(const Named& adapter, const std::vector<std::string>& weights,
                  const std::string& base, const std::function<bool(const std::string&)>& has);

}  // namespace nola::adapters
