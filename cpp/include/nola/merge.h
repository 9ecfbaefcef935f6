// merge: out = W + scaling * B A, accumulated in fp32 and rounded once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nola/basis.h"

namespace nola {

enum class ElementType : std::uint8_t { kFloat32, kFloat16, kBFloat16 };

constexpr std::size_t element_size(ElementType type) {
    return type == ElementType::kFloat32 ? 4 : 2;
}

// A low-rank update: b is rows x rank, a is rank x cols, both row-major and contiguous.
struct LowRank {
    const float* b = nullptr;
    const float* a = nullptr;
    std::size_t rank = 0;
    float scaling = 1.0F;
};

// A weight that is read at `base` and written at `out`: a matrix of `type`, row-major, aligned like
// any of its type, with `base_stride` and `out_stride` elements from row to row. The two are one,
// or have no byte in common, gaps between rows included.
struct Weight {
    const void* base = nullptr;
    void* out = nullptr;
    ElementType type = ElementType::kFloat32;
    Shape shape;
    std::size_t base_stride = 0;
    std::size_t out_stride = 0;
};

// Writes the merged weight, in one pass and without a copy. For each element: acc = 0;
// acc = fma(b[m,j], a[j,n], acc) for j in order; y = fma(scaling, acc, base[m,n]); y rounded to
// nearest even into the weight's type. The factors must not overlap `out`.
//
// Returns whether every merged element is finite; false leaves non-finite elements in `out`, or,
// where a factor or the scaling is not finite itself, `out` as it was.
// Deterministic to the bit like expand. Thread-safe for distinct weights.
// Throws std::invalid_argument, naming the argument, before anything is written.
[[nodiscard]] bool merge(const Weight& weight, const LowRank& update, int num_threads = 0);

// The same in place, for a weight of rows without gaps.
[[nodiscard]] bool merge(void* weight, ElementType type, std::size_t rows, std::size_t cols,
                         const LowRank& update, int num_threads = 0);

// Multiplies values by `factor` rounded to fp32, in place: how each B of several adapters gets its
// scaling before their ranks are concatenated, and how quantised coefficients get their scale.
void scale(float* values, std::size_t count, double factor);

}  // namespace nola
