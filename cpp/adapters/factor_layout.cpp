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

std::vector<float> interleaved_rows(const Rows& rows, std::size_t rank, std::uint64_t head_rows,
                                    std::uint64_t begin, std::uint64_t end) {
    std::vector<float> all;
    all.reserve(static_cast<std::size_t>(end - begin) * rank);
    const auto append = [&](const std::vector<float>& values, std::uint64_t first,
                            std::uint64_t count) {
        const auto at = values.begin() + static_cast<std::ptrdiff_t>(first * rank);
        all.insert(all.end(), at, at + static_cast<std::ptrdiff_t>(count * rank));
    };
    const std::uint64_t half = head_rows / 2;
    while (begin < end) {
        const std::uint64_t head = begin / head_rows * head_rows;
        const std::uint64_t whole = (end - begin) / head_rows * head_rows;
        if (begin == head && whole != 0) {
            append(
                interleaved(rows(begin, begin + whole), rank, static_cast<std::size_t>(head_rows)),
                0, whole);
            begin += whole;
            continue;
        }
        // A part of a head: the same rows of both halves.
        const std::uint64_t stop = std::min(end, head + head_rows);
        const std::uint64_t from = (begin - head) / 2;
        const std::uint64_t to = (stop - head + 1) / 2;
        std::vector<float> pairs = rows(head + from, head + to);
        const std::vector<float> second = rows(head + half + from, head + half + to);
        pairs.insert(pairs.end(), second.begin(), second.end());
        append(interleaved(pairs, rank, static_cast<std::size_t>(2 * (to - from))),
               (begin - head) % 2, stop - begin);
        begin = stop;
    }
    return all;
}

}  // namespace nola::adapters
