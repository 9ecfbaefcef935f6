#include "factor_layout.h"

#include <algorithm>

namespace nola::adapters {

std::vector<float> transposed(const std::vector<float>& values, std::size_t rows,
                              std::size_t cols) {
    std::vector<float> turned(values.size());
    for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t col = 0; col < cols; ++col) {
            turned[col * rows + row] = values[row * cols + col];
        }
    }
    return turned;
}

std::vector<float> interleaved(const std::vector<float>& b, std::size_t rank,
                               std::size_t head_rows) {
    std::vector<float> moved(b.size());
    const std::size_t half = head_rows / 2;
    for (std::size_t row = 0; row < b.size() / rank; ++row) {
        const std::size_t in_head = row % head_rows;
        const std::size_t from = row - in_head + in_head / 2 + (in_head % 2) * half;
        std::copy_n(&b[from * rank], rank, &moved[row * rank]);
    }
    return moved;
}

}  // namespace nola::adapters
