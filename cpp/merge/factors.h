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

// Rows of one term's B for lines of the stored matrix, in its order: lines x rank.
std::vector<float> rows_of_b(const Term& term, const Range& lines, int num_threads);

// A window of one term's A: rows x columns.
std::vector<float> window_of_a(const Term& term, const Range& rows, const Range& cols,
                               int num_threads);

// Some columns of the right factor, rank x columns.
std::vector<float> right_factor(const Segment& segment, const Range& cols, int num_threads);

// Some rows of the left factor, rows x rank, on the calling thread.
std::vector<float> left_factor(const Segment& segment, const Range& rows);

}  // namespace nola::merging
