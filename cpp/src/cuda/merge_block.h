// merge, as one block of threads does it: a tile of the product B A in registers, added to the base
// and rounded once.
//
// A thread reads its part of the base first of all, so that memory works while it multiplies.
#pragma once

#include "cuda/jobs_view.h"

namespace nola::cuda {

// Each thread has four columns in either half of a tile, which keeps its reads of A apart in banks
// and those of the base together in memory.
inline constexpr unsigned kMergeHalf = kMergeTileCols / 2;

struct alignas(16) MergeShared {
    float a[kMergeRanks][kMergeTileCols];
    // Padded: the threads that store a column of B would else share a bank.
    float b[kMergeRanks][kMergeTileRows + 4];
};

// Bits that add up to a sign if an exponent is all ones: infinity or NaN.
template <class T>
NOLA_BODY std::uint32_t overflow_of(T value);
template <>
NOLA_BODY std::uint32_t overflow_of(float value) {
    return (bits_of(value) & 0x7F800000U) + 0x00800000U;
}
template <>
NOLA_BODY std::uint32_t overflow_of(Half value) {
    return ((value.bits & 0x7C00U) + 0x0400U) << 16;
}
template <>
NOLA_BODY std::uint32_t overflow_of(BFloat16 value) {
    return ((value.bits & 0x7F80U) + 0x0080U) << 16;
}

struct MergeSums {
    float of[kMergeRows][8];
};

// Where a tile begins, and what of it lies within the matrix.
struct MergeTile {
    std::uint64_t first;  // element of the matrix
    unsigned rows;
    unsigned cols;
    bool is_whole;  // and can be read four elements at a time
};

// Where a thread stands within a tile: the first of its kMergeRows rows, the first of its first
// four columns.
struct MergePlace {
    unsigned row;
    unsigned col;

    NOLA_BODY explicit MergePlace(unsigned thread)
        : row(thread / 16 * kMergeRows), col(thread % 16 * 4) {}
};

template <class T>
struct BaseElements {
    Four<T> of[kMergeRows][2];
};

template <class T>
NOLA_BODY void load_base(const MergeJob& job, const MergeTile& tile, const MergePlace& place,
                         BaseElements<T>& base) {
    const T* from =
        static_cast<const T*>(job.base) + tile.first + place.row * job.stride + place.col;
    NOLA_UNROLL
    for (auto& row : base.of) {
        row[0] = load_four(from);
        row[1] = load_four(from + kMergeHalf);
        from += job.stride;
    }
}

// Adds, rounds and stores; the result's sign bit tells whether something is not finite.
template <class T>
NOLA_BODY std::uint32_t store_merged(const MergeJob& job, const MergeTile& tile,
                                     const MergePlace& place, const MergeSums& sums,
                                     const BaseElements<T>& base) {
    std::uint32_t overflow = 0;
    T* to = static_cast<T*>(job.out) + tile.first + place.row * job.stride + place.col;
    NOLA_UNROLL
    for (unsigned m = 0; m < kMergeRows; ++m) {
        NOLA_UNROLL
        for (unsigned half = 0; half < 2; ++half) {
            Four<T> merged;
            NOLA_UNROLL
            for (unsigned i = 0; i < 4; ++i) {
                merged.value[i] = rounded<T>(fused_multiply_add(
                    job.scaling, sums.of[m][half * 4 + i], widen(base.of[m][half].value[i])));
                overflow |= overflow_of(merged.value[i]);
            }
            store_four(to + half * kMergeHalf, merged);
        }
        to += job.stride;
    }
    return overflow;
}

// The same element by element, where a tile reaches over the matrix or lies askew in memory.
template <class T>
NOLA_BODY std::uint32_t merge_elements(const MergeJob& job, const MergeTile& tile,
                                       const MergePlace& place, const MergeSums& sums) {
    std::uint32_t overflow = 0;
    std::uint64_t element = tile.first + place.row * job.stride + place.col;
    NOLA_UNROLL
    for (unsigned m = 0; m < kMergeRows; ++m) {
        if (place.row + m >= tile.rows) {
            break;
        }
        const T* from = static_cast<const T*>(job.base) + element;
        T* to = static_cast<T*>(job.out) + element;
        NOLA_UNROLL
        for (unsigned i = 0; i < 8; ++i) {
            const unsigned offset = i % 4 + i / 4 * kMergeHalf;
            if (place.col + offset < tile.cols) {
                to[offset] =
                    rounded<T>(fused_multiply_add(job.scaling, sums.of[m][i], widen(from[offset])));
                overflow |= overflow_of(to[offset]);
            }
        }
        element += job.stride;
    }
    return overflow;
}

// Ranks [rank, rank + kMergeRanks) of A's columns of a tile; zeros beyond the matrix.
NOLA_BODY void load_a(const MergeJob& job, std::uint64_t col, std::uint32_t rank,
                      MergeShared& shared, unsigned thread) {
    constexpr unsigned kStep = kMergeThreads / kMergeTileCols;
    const unsigned n = thread % kMergeTileCols;
    const unsigned first = thread / kMergeTileCols;
    const float* from = job.a + (rank + first) * job.a_stride + col + n;
    NOLA_UNROLL
    for (unsigned j = 0; j < kMergeRanks; j += kStep) {
        const bool is_inside = rank + first + j < job.rank && col + n < job.cols;
        shared.a[first + j][n] = is_inside ? load_constant(from) : 0.0F;
        from += kStep * job.a_stride;
    }
}

// The same ranks of B's rows of a tile, transposed.
NOLA_BODY void load_b(const MergeJob& job, std::uint64_t row, std::uint32_t rank,
                      MergeShared& shared, unsigned thread) {
    constexpr unsigned kStep = kMergeThreads / kMergeRanks;
    const unsigned j = thread % kMergeRanks;
    const unsigned first = thread / kMergeRanks;
    const float* from = job.b + (row + first) * job.rank + rank + j;
    NOLA_UNROLL
    for (unsigned m = 0; m < kMergeTileRows; m += kStep) {
        const bool is_inside = rank + j < job.rank && row + first + m < job.rows;
        shared.b[j][first + m] = is_inside ? load_constant(from) : 0.0F;
        from += std::uint64_t{kStep} * job.rank;
    }
}

// Products of the ranks that are in shared memory, in order.
NOLA_BODY void multiply_ranks(const MergeShared& shared, const MergePlace& place, unsigned ranks,
                              MergeSums& sums) {
    NOLA_UNROLL_TWO
    for (unsigned j = 0; j < ranks; ++j) {
        const auto b = *reinterpret_cast<const Four<float>*>(&shared.b[j][place.row]);
        NOLA_UNROLL
        for (unsigned half = 0; half < 2; ++half) {
            const auto a =
                *reinterpret_cast<const Four<float>*>(&shared.a[j][place.col + half * kMergeHalf]);
            NOLA_UNROLL
            for (unsigned m = 0; m < kMergeRows; ++m) {
                NOLA_UNROLL
                for (unsigned i = 0; i < 4; ++i) {
                    float& sum = sums.of[m][half * 4 + i];
                    sum = fused_multiply_add(b.value[m], a.value[i], sum);
                }
            }
        }
    }
}

NOLA_BODY unsigned at_most(unsigned most, std::uint64_t left) {
    return left < most ? static_cast<unsigned>(left) : most;
}

// One tile of a launch.
template <class T, class Block, class Jobs>
NOLA_BODY void merge_tile(Block& block, const Jobs& jobs, std::uint64_t piece, int* not_finite,
                          MergeShared& shared) {
    const std::uint32_t index = jobs.find(piece, &MergeJob::end);
    const MergeJob& job = jobs[index];
    const std::uint64_t within = piece - first_piece(jobs, index, &MergeJob::end);
    const std::uint64_t row = within / job.col_tiles * kMergeTileRows;
    const std::uint64_t col = within % job.col_tiles * kMergeTileCols;
    MergeTile tile{};
    tile.first = row * job.stride + col;
    tile.rows = at_most(kMergeTileRows, job.rows - row);
    tile.cols = at_most(kMergeTileCols, job.cols - col);
    tile.is_whole =
        job.is_aligned != 0 && tile.rows == kMergeTileRows && tile.cols == kMergeTileCols;

    typename Block::template PerThread<MergeSums> sums;
    typename Block::template PerThread<BaseElements<T>> base;
    const std::uint32_t passes = job.rank == 0 ? 1 : (job.rank + kMergeRanks - 1) / kMergeRanks;
    NOLA_KEEP_ROLLED
    for (std::uint32_t pass = 0; pass < passes; ++pass) {
        const std::uint32_t rank = pass * kMergeRanks;
        const unsigned ranks = at_most(kMergeRanks, job.rank - rank);
        const bool is_last = pass + 1 == passes;
        block.phase([&](unsigned thread) {
            if (is_last && tile.is_whole) {
                load_base(job, tile, MergePlace(thread), base[thread]);
            }
            load_a(job, col, rank, shared, thread);
            load_b(job, row, rank, shared, thread);
        });
        block.phase([&](unsigned thread) {
            const MergePlace place(thread);
            MergeSums& sum = sums[thread];
            if (pass == 0) {
                sum = {};
            }
            multiply_ranks(shared, place, ranks, sum);
            if (!is_last) {
                return;
            }
            const std::uint32_t overflow = tile.is_whole
                                               ? store_merged(job, tile, place, sum, base[thread])
                                               : merge_elements<T>(job, tile, place, sum);
            if (overflow >> 31 != 0) {
                set_flag(not_finite);
            }
        });
    }
}

}  // namespace nola::cuda
