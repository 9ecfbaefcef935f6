// expand, as one block of threads does it: tables in shared memory, sums in registers, one store.
//
// A Block runs phases: phase(f) calls f(thread) for each of its threads and is over when all are
// done, so that what one phase writes to shared memory the next one reads; PerThread<T> is a
// variable of each thread that outlives a phase.
#pragma once

#include "cuda/jobs_view.h"
#include "nola/basis.h"

namespace nola::cuda {

// Weights of so many draws are in shared memory at a time: 16 kB, so that many blocks fit.
inline constexpr unsigned kTableDraws = 32;
inline constexpr unsigned kDrawTables = kRademacherPerDraw / kSignGroup;
inline constexpr unsigned kCoefficientDraws = 512;

template <Basis kKind>
struct ExpandShared;

// For each group of four bases the sixteen sums (±c0 ± c1) + (±c2 ± c3); bit i of the index means
// -c_i. Sixteen words lie in sixteen banks: any choice of entries by the threads of a warp is read
// at once.
template <>
struct alignas(64) ExpandShared<Basis::kRademacher> {
    static constexpr unsigned kDraws = kTableDraws;
    float table[kTableDraws * kDrawTables][kSignTable];

    NOLA_BODY void fill(const ExpandJob& job, std::uint32_t draw, std::uint32_t draws,
                        unsigned thread) {
        for (unsigned entry = thread; entry < draws * kDrawTables * kSignTable;
             entry += kExpandThreads) {
            const unsigned group = entry / kSignTable;
            const std::uint64_t basis =
                std::uint64_t{draw} * kRademacherPerDraw + group * kSignGroup;
            float term[kSignGroup];
            NOLA_UNROLL
            for (unsigned i = 0; i < kSignGroup; ++i) {
                const float c = basis + i < job.num_basis
                                    ? load_constant(job.coefficients + basis + i) * job.gain
                                    : 0.0F;
                term[i] = ((entry >> i) & 1U) != 0 ? -c : c;
            }
            table[group][entry % kSignTable] = (term[0] + term[1]) + (term[2] + term[3]);
        }
    }

    // The entry for a digit of a word, in the tables of a draw. Its offset in bytes takes one shift
    // of the word and one operation that masks the digit and adds the draw's offset, which has no
    // bits in common with it.
    NOLA_BODY float entry(std::uint32_t draw_offset, std::uint32_t word, unsigned digit) const {
        constexpr int kEntryBits = 2;
        static_assert(sizeof(float) == 1U << kEntryBits);
        const int shift = static_cast<int>(digit * kSignGroup) - kEntryBits;
        const std::uint32_t moved = shift < 0 ? word << -shift : word >> shift;
        const std::uint32_t offset = (moved & ((kSignTable - 1) << kEntryBits)) | draw_offset;
        return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(table[digit]) +
                                               offset);
    }

    NOLA_BODY void add(std::uint32_t draw, const std::uint32_t (&words)[kStripeWords],
                       float (&sums)[kStripeWords]) const {
        const auto draw_offset = static_cast<std::uint32_t>(draw * kDrawTables * sizeof table[0]);
        NOLA_UNROLL
        for (unsigned group = 0; group < kDrawTables; ++group) {
            NOLA_UNROLL
            for (unsigned w = 0; w < kStripeWords; ++w) {
                sums[w] = sums[w] + entry(draw_offset, words[w], group);
            }
        }
    }
};

template <>
struct alignas(64) ExpandShared<Basis::kUniform> {
    static constexpr unsigned kDraws = kCoefficientDraws;
    float coefficient[kCoefficientDraws][kUniformPerDraw];

    NOLA_BODY void fill(const ExpandJob& job, std::uint32_t draw, std::uint32_t draws,
                        unsigned thread) {
        for (unsigned i = thread; i < draws * kUniformPerDraw; i += kExpandThreads) {
            const std::uint64_t basis = std::uint64_t{draw} * kUniformPerDraw + i;
            coefficient[i / kUniformPerDraw][i % kUniformPerDraw] =
                basis < job.num_basis ? load_constant(job.coefficients + basis) * job.gain : 0.0F;
        }
    }

    NOLA_BODY void add(std::uint32_t draw, const std::uint32_t (&words)[kStripeWords],
                       float (&sums)[kStripeWords]) const {
        const float first = coefficient[draw][0];
        const float second = coefficient[draw][1];
        NOLA_UNROLL
        for (unsigned w = 0; w < kStripeWords; ++w) {
            sums[w] = fused_multiply_add(first, uniform_low(words[w]), sums[w]);
            sums[w] = fused_multiply_add(second, uniform_high(words[w]), sums[w]);
        }
    }
};

struct ExpandSums {
    float of_word[kStripeWords];
};

// The tiles [first, last) of a launch. A job's weights stay in shared memory from tile to tile
// where all of them fit.
template <Basis kKind, class Block, class Jobs>
NOLA_BODY void expand_tiles(Block& block, const RoundKeys& keys, ElementType type, const Jobs& jobs,
                            std::uint64_t first, std::uint64_t last, ExpandShared<kKind>& shared) {
    constexpr unsigned kDraws = ExpandShared<kKind>::kDraws;
    std::uint32_t index = jobs.find(first, &ExpandJob::end);
    bool is_filled = false;
    for (std::uint64_t tile = first; tile < last; ++tile) {
        while (tile >= jobs[index].end) {
            ++index;
            is_filled = false;
        }
        const ExpandJob& job = jobs[index];
        const std::uint64_t slot =
            (tile - first_piece(jobs, index, &ExpandJob::end)) * kExpandSlots;
        typename Block::template PerThread<ExpandSums> sums;
        NOLA_KEEP_ROLLED
        for (std::uint32_t draw = 0; draw < job.draws; draw += kDraws) {
            const std::uint32_t draws = job.draws - draw < kDraws ? job.draws - draw : kDraws;
            if (!is_filled) {
                block.phase([&](unsigned thread) { shared.fill(job, draw, draws, thread); });
                is_filled = job.draws <= kDraws;
            }
            block.phase([&](unsigned thread) {
                const std::uint64_t own = slot + thread / kStripeLanes;
                if (own >= job.slots.count) {
                    return;
                }
                const Elements elements = elements_at(job.slots, own, thread % kStripeLanes);
                const CounterPrefix prefix = philox_prefix(keys, job.stream, elements.counter);
                ExpandSums sum = draw == 0 ? ExpandSums{} : sums[thread];
                NOLA_KEEP_ROLLED
                for (std::uint32_t i = 0; i < draws; ++i) {
                    std::uint32_t words[kStripeWords];
                    philox_words(keys, job.stream, prefix, draw + i, words);
                    shared.add(i, words, sum.of_word);
                }
                if (draw + draws < job.draws) {
                    sums[thread] = sum;
                    return;
                }
                NOLA_UNROLL
                for (unsigned w = 0; w < kStripeWords; ++w) {
                    if (elements.contains(w)) {
                        store_element(type, job.out, elements.index(w), sum.of_word[w]);
                    }
                }
            });
        }
    }
}

}  // namespace nola::cuda
