#include "generator.h"

#include <stdexcept>
#include <string>

#include "nola/philox.h"

namespace nola {
namespace {

void check_range(const char* name, std::size_t begin, std::size_t end, std::size_t size) {
    if (begin > end || end > size) {
        throw std::invalid_argument(std::string(name) + ": (" + std::to_string(begin) + ", " +
                                    std::to_string(end) + ") is not a range within 0.." +
                                    std::to_string(size));
    }
}

}  // namespace

void check_matrix(const Matrix& matrix) {
    const auto& [basis, seed, stream, num_basis, shape, window] = matrix;
    if (seed > kMaxSeed) {
        throw std::invalid_argument("seed: must be below 2^63");
    }
    if (num_basis == 0 || num_basis > kMaxBasisCount) {
        throw std::invalid_argument("num_basis: " + std::to_string(num_basis) +
                                    " is not in 1..2^32");
    }
    if (shape.rows != 0 && shape.cols > kMaxElements / shape.rows) {
        throw std::invalid_argument("shape: (" + std::to_string(shape.rows) + ", " +
                                    std::to_string(shape.cols) + ") has more than 2^34 elements");
    }
    check_range("rows", window.row_begin, window.row_end, shape.rows);
    check_range("cols", window.col_begin, window.col_end, shape.cols);
}

kernels::Generator make_generator(const Matrix& matrix) {
    kernels::Generator generator{};
    PhiloxKey key = {static_cast<std::uint32_t>(matrix.seed),
                     static_cast<std::uint32_t>(matrix.seed >> 32)};
    for (auto& round_key : generator.key) {
        round_key[0] = key[0];
        round_key[1] = key[1];
        key[0] += kPhiloxWeyl0;
        key[1] += kPhiloxWeyl1;
    }
    const std::uint64_t product =
        std::uint64_t{kPhiloxMultiplier1} * static_cast<std::uint32_t>(matrix.stream);
    generator.product1_hi = static_cast<std::uint32_t>(product >> 32);
    generator.product1_lo = static_cast<std::uint32_t>(product);
    generator.stream_hi = static_cast<std::uint32_t>(matrix.stream >> 32);
    return generator;
}

std::uint32_t draw_count(const Matrix& matrix) {
    const std::size_t per_draw =
        matrix.basis == Basis::kRademacher ? kernels::kRademacherPerDraw : kernels::kUniformPerDraw;
    return static_cast<std::uint32_t>((matrix.num_basis + per_draw - 1) / per_draw);
}

}  // namespace nola
