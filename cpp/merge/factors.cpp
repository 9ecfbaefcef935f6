#include "factors.h"

#include <algorithm>

#include "adapters/expanded.h"
#include "adapters/factor_layout.h"
#include "nola/merge.h"

namespace nola::merging {

namespace {

using adapters::expanded;
using adapters::interleaved_rows;
using adapters::transposed;

// Rows of B for some lines of the stored matrix, lines x rank; with its own scaling if it is one
// of several.
std::vector<float> b_of(const Segment& segment, const Term& term, const Range& lines,
                        int num_threads) {
    std::vector<float> values = rows_of_b(term, lines, num_threads);
    if (segment.terms.size() > 1) {
        scale(values.data(), values.size(), term.scaling());
    }
    return values;
}

}  // namespace

std::vector<float> rows_of_b(const Term& term, const Range& lines, int num_threads) {
    const auto rows = [&](std::uint64_t begin, std::uint64_t end) {
        Matrix matrix = term.adapter->adapter.factor(*term.module, Factor::kB,
                                                     static_cast<std::size_t>(term.outputs));
        matrix.window.row_begin = static_cast<std::size_t>(begin);
        matrix.window.row_end = static_cast<std::size_t>(end);
        return expanded(matrix, term.module->beta, num_threads);
    };
    const Range own{lines.begin - term.begin, lines.end - term.begin};
    return term.head_rows == 0
               ? rows(own.begin, own.end)
               : interleaved_rows(rows, term.rank(), term.head_rows, own.begin, own.end);
}

std::vector<float> window_of_a(const Term& term, const Range& rows, const Range& cols,
                               int num_threads) {
    Matrix matrix = term.adapter->adapter.factor(*term.module, Factor::kA,
                                                 static_cast<std::size_t>(term.inputs));
    matrix.window = {static_cast<std::size_t>(rows.begin), static_cast<std::size_t>(rows.end),
                     static_cast<std::size_t>(cols.begin), static_cast<std::size_t>(cols.end)};
    return expanded(matrix, term.module->alpha, num_threads);
}

Range common(const Range& one, const Range& other) {
    const std::uint64_t begin = std::max(one.begin, other.begin);
    return {begin, std::max(begin, std::min(one.end, other.end))};
}

std::size_t rank_of(const Segment& segment) {
    std::size_t rank = 0;
    for (const Term& term : segment.terms) {
        rank += term.rank();
    }
    return rank;
}

float scaling_of(const Segment& segment) {
    float scaling = 1.0F;
    if (segment.terms.size() == 1) {
        scale(&scaling, 1, segment.terms[0].scaling());
    }
    return scaling;
}

std::vector<float> right_factor(const Segment& segment, const Range& cols, int num_threads) {
    std::vector<float> joined;
    for (const Term& term : segment.terms) {
        std::vector<float> own =
            term.transposed
                ? transposed(b_of(segment, term, cols, num_threads), cols.size(), term.rank())
                : window_of_a(term, {0, term.rank()}, cols, num_threads);
        if (segment.terms.size() == 1) {
            return own;
        }
        joined.insert(joined.end(), own.begin(), own.end());
    }
    return joined;
}

std::vector<float> left_factor(const Segment& segment, const Range& rows) {
    const std::size_t rank = rank_of(segment);
    std::vector<float> joined;
    std::size_t before = 0;
    for (const Term& term : segment.terms) {
        std::vector<float> own =
            term.transposed
                ? transposed(window_of_a(term, {0, term.rank()}, rows, 1), term.rank(), rows.size())
                : b_of(segment, term, rows, 1);
        if (segment.terms.size() == 1) {
            return own;
        }
        joined.resize(rows.size() * rank);
        for (std::size_t row = 0; row < rows.size(); ++row) {
            std::copy_n(own.data() + row * term.rank(), term.rank(),
                        joined.data() + row * rank + before);
        }
        before += term.rank();
    }
    return joined;
}

}  // namespace nola::merging
