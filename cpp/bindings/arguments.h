// Arguments that the doors to the core share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nola/basis.h"
#include "nola/merge.h"

namespace nola::bindings {

using Extent = std::pair<std::size_t, std::size_t>;

inline Basis basis_from_name(std::string_view name) {
    if (name == "rademacher") {
        return Basis::kRademacher;
    }
    if (name == "uniform") {
        return Basis::kUniform;
    }
    throw pybind11::value_error("basis: '" + std::string(name) +
                                "' is not known; use 'rademacher' or 'uniform'");
}

inline BasisStream make_stream(std::string_view basis, std::uint64_t seed, std::uint64_t stream) {
    return {basis_from_name(basis), seed, stream};
}

inline Window make_window(Extent rows, Extent cols) {
    return {rows.first, rows.second, cols.first, cols.second};
}

// A scaling as the specification rounds it; a caster would round as the caller's environment says.
inline float float32_of(double value) {
    float rounded = 1.0F;
    scale(&rounded, 1, value);
    return rounded;
}

// expand, project and merge on addresses instead of arrays, for tensors of other frameworks.
void define_pointer_functions(pybind11::module_& m);

}  // namespace nola::bindings
