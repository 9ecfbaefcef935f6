// Expanded factors as stored weights have their lines.
#pragma once

#include <cstddef>
#include <vector>

namespace nola::adapters {

// A factor of rows x cols as cols x rows, as layers that store their weights so have it.
std::vector<float> transposed(const std::vector<float>& values, std::size_t rows, std::size_t cols);

// Rows of B, of whole heads, with each head's rotated pairs side by side: its first half and its
// second in turn.
std::vector<float> interleaved(const std::vector<float>& b, std::size_t rank,
                               std::size_t head_rows);

}  // namespace nola::adapters
