// The counter basis, version 1: which random matrices a seed and a stream stand for.
//
// Basis matrix i is addressed, never stored: its element at flat row-major index e is a function
// of (seed, stream, i, e) alone. See docs/basis-v1.md for the complete specification.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nola {

enum class Basis : std::uint8_t {
    kRademacher,  // one bit per element: +1 or -1
    kUniform,     // sixteen bits per element: an odd integer in [-65535, 65535]
};

struct Shape {
    std::size_t rows = 0;
    std::size_t cols = 0;
};

// The rows [row_begin, row_end) and columns [col_begin, col_end) of a matrix.
struct Window {
    std::size_t row_begin = 0;
    std::size_t row_end = 0;
    std::size_t col_begin = 0;
    std::size_t col_end = 0;

    static constexpr Window whole(Shape shape) { return {0, shape.rows, 0, shape.cols}; }
    constexpr std::size_t rows() const { return row_end - row_begin; }
    constexpr std::size_t cols() const { return col_end - col_begin; }
};

// A sum of random matrices with coefficients, g * sum_i c_i * basis_i, and the window of it that is
// wanted. `seed` is below 2^63 and belongs to the adapter; `stream` belongs to one factor of one
// module (see stream_id).
struct Matrix {
    Basis basis = Basis::kRademacher;
    std::uint64_t seed = 0;
    std::uint64_t stream = 0;
    std::size_t num_basis = 0;
    Shape shape;
    Window window;
};

enum class Factor : char { kA = 'A', kB = 'B' };

// The element counter has 32 bits and advances by 16 every 64 elements.
inline constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 34;
inline constexpr std::uint64_t kMaxSeed = (std::uint64_t{1} << 63) - 1;
// The draw counter has 32 bits and serves two (uniform) bases at the least.
inline constexpr std::uint64_t kMaxBasisCount = std::uint64_t{1} << 32;

// FNV-1a-64 over bytes, from its offset basis or from the hash of those before them.
std::uint64_t fnv1a(std::string_view bytes, std::uint64_t hash = 0xCBF29CE484222325ULL);

// FNV-1a-64 over the UTF-8 bytes of "<module>:A" or "<module>:B".
std::uint64_t stream_id(std::string_view module, Factor factor);

// g = fl32(sigma / sqrt(num_basis)), sigma = 1 (rademacher) or sqrt(3 / (2^32 - 1)) (uniform):
// scales a combination of num_basis unit coefficients to unit variance.
float gain(Basis basis, std::size_t num_basis);

// What expand and project check before they allocate or write anything: throws
// std::invalid_argument naming the field.
void check_matrix(const Matrix& matrix);

}  // namespace nola
