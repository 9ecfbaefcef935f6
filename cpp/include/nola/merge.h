// merge: W <- W + scaling * B A, accumulated in fp32 and rounded once.
#pragma once

#include <cstddef>
#include <cstdint>

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

// Merges in place into `weight`, rows x cols elements of `type`, row-major, contiguous and aligned
// like any of its type. For each element: acc = 0; acc = fma(b[m,j], a[j,n], acc) for j in order;
// y = fma(scaling, acc, weight[m,n]); y rounded to nearest even into `type`. The factors must not
// overlap the weight.
//
// Returns whether every merged element is finite; false leaves non-finite elements in the weight,
// or, where a factor or the scaling is not finite itself, the weight as it was.
// Deterministic to the bit like expand. Thread-safe for distinct weights.
// Throws std::invalid_argument, naming the argument, before anything is written.
[[nodiscard]] bool merge(void* weight, ElementType type, std::size_t rows, std::size_t cols,
                         const LowRank& update, int num_threads = 0);

// Multiplies values by `factor` rounded to fp32, in place: how each B of several adapters gets its
// scaling before their ranks are concatenated, and how quantised coefficients get their scale.
void scale(float* values, std::size_t count, double factor);

}  // namespace nola
