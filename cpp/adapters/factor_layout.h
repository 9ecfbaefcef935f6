// Expanded factors as stored weights have their lines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace nola::adapters {

// A factor of rows x cols as cols x rows, as layers that store their weights so have it.
std::vector<float> transposed(const std::vector<float>& values, std::size_t rows, std::size_t cols);

// Rows of B, of whole heads, with each head's rotated pairs side by side: its first half and its
// second in turn.
std::vector<float> interleaved(const std::vector<float>& b, std::size_t rank,
                               std::size_t head_rows);

// Rows [begin, end) of B in that order, of which `rows` gives those [begin, end) in the model's: no
// others are asked for but at most one of each half of the first and last head.
using Rows = std::function<std::vector<float>(std::uint64_t begin, std::uint64_t end)>;
std::vector<float> interleaved_rows(const Rows& rows, std::size_t rank, std::uint64_t head_rows,
                                    std::uint64_t begin, std::uint64_t end);

}  // namespace nola::adapters
