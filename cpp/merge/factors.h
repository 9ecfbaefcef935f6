// The factors of what changes a stored matrix, in windows.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace nola::merging {

// Rows, or columns, [begin, end).
struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;

    std::size_t size() const { return static_cast<std::size_t>(end - begin); }
};

// What two ranges have in common; it may be empty.
Range common(const Range& one, const Range& other);

// The sum of the terms' ranks.
std::size_t rank_of(const Segment& segment);

// The factor on the product: several terms have theirs in B already.
float scaling_of(const Segment& segment);

// Some columns of the right factor, rank x columns.
std::vector<float> right_factor(const Segment& segment, const Range& cols, int num_threads);

// Some rows of the left factor, rows x rank, on the calling thread.
std::vector<float> left_factor(const Segment& segment, const Range& rows);

}  // namespace nola::merging
