// How a window of a matrix is cut into pieces of whole stripes.
//
// A window whose rows follow one another without a gap is one run of elements; any other window
// is one run per row. Runs are cut at multiples of kPieceElements of the matrix's flat index, so
// a piece's elements, and with them every order of summation, depend on the window alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "nola/basis.h"

namespace nola {

struct Piece {
    std::uint64_t begin = 0;  // flat element index in the matrix
    std::uint64_t end = 0;
    std::size_t offset = 0;  // index of `begin` within the window
};

class Pieces {
public:
    static constexpr std::size_t kPieceElements = 2048;

    Pieces(Shape shape, Window window) : shape_(shape), window_(window) {
        const bool contiguous = window.cols() == shape.cols || window.rows() == 1;
        runs_ = contiguous ? 1 : window.rows();
        run_length_ = contiguous ? window.rows() * window.cols() : window.cols();
        if (window.rows() == 0 || window.cols() == 0) {
            runs_ = 0;
        }
        // A run that starts inside a piece touches one more than its length suggests.
        per_run_ = (run_length_ + kPieceElements - 1) / kPieceElements + 1;
    }

    // Some of the pieces may be empty.
    std::size_t count() const { return runs_ * per_run_; }

    Piece operator[](std::size_t index) const {
        const std::size_t run = index / per_run_;
        const std::uint64_t first =
            std::uint64_t{window_.row_begin + run} * shape_.cols + window_.col_begin;
        const std::uint64_t last = first + run_length_;
        const std::uint64_t cut = (first / kPieceElements + index % per_run_) * kPieceElements;
        Piece piece;
        piece.begin = std::min(std::max(first, cut), last);
        piece.end = std::min(cut + kPieceElements, last);
        piece.offset = run * run_length_ + static_cast<std::size_t>(piece.begin - first);
        return piece;
    }

private:
    Shape shape_;
    Window window_;
    std::size_t runs_ = 0;
    std::size_t run_length_ = 0;
    std::size_t per_run_ = 1;
};

// The stripes that a piece touches; `lead` is how many elements of the first lie before it.
struct StripeSpan {
    kernels::StripeRange range;
    std::size_t lead;

    explicit StripeSpan(const Piece& piece)
        : range{static_cast<std::uint32_t>(piece.begin / kernels::kStripe), 0},
          lead(static_cast<std::size_t>(piece.begin % kernels::kStripe)) {
        range.count = static_cast<std::uint32_t>(
            (piece.end + kernels::kStripe - 1) / kernels::kStripe - range.first);
    }
    bool whole(const Piece& piece) const { return lead == 0 && piece.end % kernels::kStripe == 0; }
};

}  // namespace nola
