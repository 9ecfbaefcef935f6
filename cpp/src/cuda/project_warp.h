// project, the adjoint of expand, as one warp does it, and the addition of what warps have summed.
//
// A lane has the four elements of one counter. The sixteen sums ±g0 ± g1 ± g2 ± g3 of their
// gradients go into a table of its own; the bits that a basis has at the four elements, moved next
// to each other, are an index into it: one look-up and one addition for four products. Lanes sum
// all 32 bases of a group apart, then each lane adds up one basis. No order depends on the device.
#pragma once

#include "cuda/jobs_view.h"
#include "nola/basis.h"

namespace nola::cuda {

inline constexpr unsigned kGroupDraws = kGroupBases / kUniformPerDraw;  // of the uniform basis

struct ProjectShared {
    // A column, and so a bank, for each lane.
    float table[kUnitSteps][kSignTable][kWarp];
    float rows[kGroupBases][kWarp];

    // The table's entry for the digit `basis / 4` of a word. The index is left where the digit
    // lies, or rather moved by one shift to where it counts rows in bytes: an instruction less.
    NOLA_BODY float entry(unsigned step, std::uint32_t word, unsigned digit, unsigned lane) const {
        constexpr int kRowBits = 7;
        static_assert(sizeof table[0][0] == 1U << kRowBits);
        const int shift = static_cast<int>(digit * kSignGroup) - kRowBits;
        const std::uint32_t moved = shift < 0 ? word << -shift : word >> shift;
        const std::uint32_t offset = (moved & ((kSignTable - 1) << kRowBits)) |
                                     static_cast<std::uint32_t>(lane * sizeof(float));
        return *reinterpret_cast<const float*>(reinterpret_cast<const char*>(table[step]) + offset);
    }
};

// Exchanges bits so that words[i] holds, in its digit j, the bits 4j + i of the four words; bit w
// of a digit is that of word w.
NOLA_BODY void gather_bits(std::uint32_t (&words)[kStripeWords]) {
    const auto exchange = [](std::uint32_t& low, std::uint32_t& high, unsigned shift,
                             std::uint32_t mask) {
        const std::uint32_t first = (low & mask) | ((high << shift) & ~mask);
        high = ((low >> shift) & mask) | (high & ~mask);
        low = first;
    };
    exchange(words[0], words[2], 2, 0x33333333U);
    exchange(words[1], words[3], 2, 0x33333333U);
    exchange(words[0], words[1], 1, 0x55555555U);
    exchange(words[2], words[3], 1, 0x55555555U);
}

// One lane's sums over a unit for the 32 bases of a group, left in its column of `rows`.
template <Basis kKind>
NOLA_BODY void sum_group(const RoundKeys& keys, const StreamWords& stream,
                         const CounterPrefix (&prefix)[kUnitSteps], std::uint32_t group,
                         std::uint32_t draws, ProjectShared& shared, unsigned lane) {
    if constexpr (kKind == Basis::kRademacher) {
        float sums[kGroupBases] = {};
        NOLA_UNROLL
        for (unsigned step = 0; step < kUnitSteps; ++step) {
            std::uint32_t words[kStripeWords];
            philox_words(keys, stream, prefix[step], group, words);
            gather_bits(words);
            NOLA_UNROLL
            for (unsigned basis = 0; basis < kGroupBases; ++basis) {
                sums[basis] = sums[basis] + shared.entry(step, words[basis % 4], basis / 4, lane);
            }
        }
        NOLA_UNROLL
        for (unsigned basis = 0; basis < kGroupBases; ++basis) {
            shared.rows[basis][lane] = sums[basis];
        }
    } else {
        // The table's first rows hold the gradients themselves.
        float grad[kUnitSteps][kStripeWords];
        NOLA_UNROLL
        for (unsigned step = 0; step < kUnitSteps; ++step) {
            NOLA_UNROLL
            for (unsigned w = 0; w < kStripeWords; ++w) {
                grad[step][w] = shared.table[step][w][lane];
            }
        }
        NOLA_KEEP_ROLLED
        for (unsigned i = 0; i < kGroupDraws; ++i) {
            float first = 0.0F;
            float second = 0.0F;
            const std::uint32_t draw = group * kGroupDraws + i;
            if (draw < draws) {
                NOLA_UNROLL
                for (unsigned step = 0; step < kUnitSteps; ++step) {
                    std::uint32_t words[kStripeWords];
                    philox_words(keys, stream, prefix[step], draw, words);
                    NOLA_UNROLL
                    for (unsigned w = 0; w < kStripeWords; ++w) {
                        first = fused_multiply_add(grad[step][w], uniform_low(words[w]), first);
                        second = fused_multiply_add(grad[step][w], uniform_high(words[w]), second);
                    }
                }
            }
            shared.rows[2 * i][lane] = first;
            shared.rows[2 * i + 1][lane] = second;
        }
    }
}

// What a lane keeps while its warp goes through the units of a chunk.
struct LaneState {
    CounterPrefix prefix[kUnitSteps];
    double sums[kMaxGroupsPerItem];
};

template <Basis kKind>
NOLA_BODY void load_gradients(const RoundKeys& keys, ElementType type, const ProjectJob& job,
                              std::uint64_t unit, LaneState& state, ProjectShared& shared,
                              unsigned lane) {
    NOLA_UNROLL
    for (unsigned step = 0; step < kUnitSteps; ++step) {
        const std::uint64_t slot = unit * kUnitSlots + step * kStepSlots + lane / kStripeLanes;
        float g[kStripeWords] = {};
        Elements elements{};
        if (slot < job.slots.count) {
            elements = elements_at(job.slots, slot, lane % kStripeLanes);
            NOLA_UNROLL
            for (unsigned w = 0; w < kStripeWords; ++w) {
                if (elements.contains(w)) {
                    g[w] = load_element(type, job.grad, elements.index(w));
                }
            }
        }
        state.prefix[step] = philox_prefix(keys, job.stream, elements.counter);
        if constexpr (kKind == Basis::kRademacher) {
            NOLA_UNROLL
            for (unsigned index = 0; index < kSignTable; ++index) {
                const auto term = [&](unsigned i) {
                    return ((index >> i) & 1U) != 0 ? -g[i] : g[i];
                };
                shared.table[step][index][lane] = (term(0) + term(1)) + (term(2) + term(3));
            }
        } else {
            NOLA_UNROLL
            for (unsigned w = 0; w < kStripeWords; ++w) {
                shared.table[step][w][lane] = g[w];
            }
        }
    }
}

// One item of a launch: a chunk of a window for up to kMaxGroupsPerItem groups of bases.
template <Basis kKind, class Warp, class Jobs>
NOLA_BODY void project_item(Warp& warp, const RoundKeys& keys, ElementType type, const Jobs& jobs,
                            std::uint64_t item, double* workspace, ProjectShared& shared) {
    const std::uint32_t index = jobs.find(item, &ProjectJob::end);
    const ProjectJob& job = jobs[index];
    const std::uint64_t within = item - first_piece(jobs, index, &ProjectJob::end);
    const auto chunk = static_cast<std::uint32_t>(within % job.chunks);
    const auto group = static_cast<std::uint32_t>(within / job.chunks) * job.groups_per_item;
    const std::uint32_t left = job.groups - group;
    const std::uint32_t groups = left < job.groups_per_item ? left : job.groups_per_item;

    typename Warp::template PerThread<LaneState> state;
    warp.phase([&](unsigned lane) {
        NOLA_UNROLL
        for (double& sum : state[lane].sums) {
            sum = 0.0;
        }
    });
    const std::uint64_t last = job.units * (chunk + 1) / job.chunks;
    NOLA_KEEP_ROLLED
    for (std::uint64_t unit = job.units * chunk / job.chunks; unit < last; ++unit) {
        warp.phase([&](unsigned lane) {
            load_gradients<kKind>(keys, type, job, unit, state[lane], shared, lane);
        });
        NOLA_KEEP_ROLLED
        for (std::uint32_t i = 0; i < groups; ++i) {
            warp.phase([&](unsigned lane) {
                sum_group<kKind>(keys, job.stream, state[lane].prefix, group + i, job.draws, shared,
                                 lane);
            });
            warp.phase([&](unsigned lane) {
                // Each lane begins elsewhere in its row, so that all read different banks.
                float sum = 0.0F;
                NOLA_UNROLL
                for (unsigned step = 0; step < kWarp; ++step) {
                    sum = sum + shared.rows[lane][(lane + step) % kWarp];
                }
                // A register for each group: one that is indexed would lie in local memory.
                NOLA_UNROLL
                for (std::uint32_t j = 0; j < kMaxGroupsPerItem; ++j) {
                    if (i == j) {
                        state[lane].sums[j] = state[lane].sums[j] + static_cast<double>(sum);
                    }
                }
            });
        }
    }
    warp.phase([&](unsigned lane) {
        double* row = workspace + job.workspace +
                      (std::uint64_t{chunk} * job.groups + group) * kGroupBases + lane;
        NOLA_UNROLL
        for (std::uint32_t j = 0; j < kMaxGroupsPerItem; ++j) {
            if (j < groups) {
                row[j * kGroupBases] = state[lane].sums[j];
            }
        }
    });
}

struct FinishShared {
    double sums[kFinishThreads / kWarp][kGroupBases];
};

// One group of 32 bases: the sums of all chunks, by eight warps and then by one.
template <class Block, class Jobs>
NOLA_BODY void finish_group(Block& block, const Jobs& jobs, std::uint64_t piece,
                            const double* workspace, FinishShared& shared) {
    constexpr unsigned kWarps = kFinishThreads / kWarp;
    const std::uint32_t index = jobs.find(piece, &ProjectJob::end_groups);
    const ProjectJob& job = jobs[index];
    const std::uint64_t group = piece - first_piece(jobs, index, &ProjectJob::end_groups);
    block.phase([&](unsigned thread) {
        const double* sums = workspace + job.workspace + group * kGroupBases + thread % kWarp;
        double sum = 0.0;
        for (std::uint32_t chunk = thread / kWarp; chunk < job.chunks; chunk += kWarps) {
            sum = sum + sums[std::uint64_t{chunk} * job.groups * kGroupBases];
        }
        shared.sums[thread / kWarp][thread % kWarp] = sum;
    });
    block.phase([&](unsigned thread) {
        const std::uint64_t basis = group * kGroupBases + thread;
        if (thread >= kGroupBases || basis >= job.num_basis) {
            return;
        }
        double sum = 0.0;
        NOLA_UNROLL
        for (const auto& of_warp : shared.sums) {
            sum = sum + of_warp[thread];
        }
        job.out[basis] = static_cast<float>(sum * static_cast<double>(job.gain));
    });
}

}  // namespace nola::cuda
