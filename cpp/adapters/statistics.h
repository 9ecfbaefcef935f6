// What an adapter's coefficients look like, and which modules it has.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace nola::adapters {

// A summary of coefficients, with the very numbers that numpy gives in double.
struct Distribution {
    static constexpr std::size_t kBins = 24;

    std::uint64_t count = 0;
    std::uint64_t zeros = 0;
    double mean = 0;
    double std = 0;
    double low = 0;
    double high = 0;
    std::array<std::uint64_t, kBins> histogram{};  // of equal bins from low to high

    // Of finite values, at least one.
    static Distribution of(const std::vector<float>& values);
    // The histogram in one line; a bin that is not empty is never drawn empty.
    std::string picture() const;
};

using TensorShape = std::vector<std::uint64_t>;

// Modules whose names differ in numbers only.
struct Pattern {
    std::string name;  // with a star for each number, unless there is one module only
    std::uint64_t count = 0;
    // Shape of a weight and how many have it; none where shapes are not known.
    std::vector<std::pair<TensorShape, std::uint64_t>> shapes;
};

// Groups names in the order of their first; `shapes`, if it is not empty, has one for each name.
std::vector<Pattern> patterns(const std::vector<std::string>& names,
                              const std::vector<TensorShape>& shapes);

}  // namespace nola::adapters
