// Coefficients of 3, 4 or 8 bits (docs/adapter-format.md, *Tensors*).
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

namespace nola::adapters {

// How many bytes hold so many numbers.
constexpr std::size_t packed_size(std::size_t count, int bits) {
    return (count * static_cast<std::size_t>(bits) + 7) / 8;
}

// Coefficients that packed integers stand for: scale * q, but for the first one if `first` is not
// null, which then is that one. Throws std::invalid_argument that says what no adapter holds.
std::vector<float> unpack(std::string_view packed, std::size_t count, int bits, float scale,
                          const float* first);

}  // namespace nola::adapters
