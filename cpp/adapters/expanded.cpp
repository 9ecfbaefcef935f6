#include "expanded.h"

#include <algorithm>
#include <cstdint>

#include "files/pieces.h"
#include "nola/expand.h"

namespace nola::adapters {

namespace {

// Elements of random matrices that are summed before somebody asks whether to go on.
constexpr std::uint64_t kAtOnce = std::uint64_t{1} << 26;

}  // namespace

std::vector<float> expanded(const Matrix& matrix, const std::vector<float>& coefficients,
                            int num_threads) {
    const std::size_t rows = matrix.window.rows();
    const std::size_t cols = matrix.window.cols();
    const std::uint64_t work = std::max<std::uint64_t>(1, std::uint64_t{cols} * matrix.num_basis);
    const auto step =
        static_cast<std::size_t>(std::clamp<std::uint64_t>(kAtOnce / work, 1, rows + 1));
    std::vector<float> values(rows * cols);
    files::for_each_piece((rows + step - 1) / step, num_threads, [&](std::size_t piece) {
        Matrix part = matrix;
        part.window.row_begin += piece * step;
        part.window.row_end = std::min(part.window.row_begin + step, matrix.window.row_end);
        expand(part, coefficients.data(), values.data() + piece * step * cols, 1);
    });
    return values;
}

}  // namespace nola::adapters
