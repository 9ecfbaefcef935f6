// The contract between the ISA-free code and the kernel sets: plain pointers, whole stripes.
//
// One table per instruction set, filled in by kernels-inl.h, which is compiled once per set.
// Nothing here may contain code: an inline function shared by files with different instruction
// set flags can be linked in its AVX-512 form and then run on a processor without it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nola::kernels {

inline constexpr std::size_t kStripe = 64;       // elements that share one run of 16 counters
inline constexpr std::size_t kStripeLanes = 16;  // Philox blocks in a stripe
inline constexpr std::size_t kStripeWords = 4;   // words of a block, one per 16 elements

inline constexpr std::size_t kLine = 64;  // bytes of the cache that belong together

inline constexpr std::size_t kBlock = 32;      // elements of a block of ggml's quantised types
inline constexpr std::size_t kBlockTypes = 5;  // Q4_0, Q4_1, Q5_0, Q5_1, Q8_0

inline constexpr std::size_t kRademacherPerDraw = 32;  // bases in one word
inline constexpr std::size_t kUniformPerDraw = 2;
inline constexpr std::size_t kSignGroup = 4;   // bases summed by one table look-up
inline constexpr std::size_t kSignTable = 16;  // 2^kSignGroup signed sums

// Philox with the scalar work done: round keys, and the product of the constant counter words.
struct Generator {
    std::uint32_t key[10][2];
    std::uint32_t stream_hi;
    std::uint32_t product1_hi;  // multiplier 1 times the low word of the stream
    std::uint32_t product1_lo;
};

struct StripeRange {
    std::uint32_t first;
    std::uint32_t count;
};

struct KernelSet {
    // out: range.count * 64 floats. tables: draws * 8 tables of 16 floats, the signed sums of four
    // bases.
    void (*expand_rademacher)(const Generator&, StripeRange range, const float* tables,
                              std::uint32_t draws, float* out);
    // coefficients: draws * 2 floats, gain included, the last padded with zero.
    void (*expand_uniform)(const Generator&, StripeRange range, const float* coefficients,
                           std::uint32_t draws, float* out);

    // sums[i] += the gradients of the elements where bit i is set, in element order.
    // grad: range.count * 64 floats; sums: draws * 32 floats.
    void (*project_rademacher)(const Generator&, StripeRange range, const float* grad,
                               std::uint32_t draws, float* sums);
    // sums[i][lane] = fma(grad, value, sums[i][lane]), lane = element mod 16, in element order.
    // sums: draws * 2 * 16 floats.
    void (*project_uniform)(const Generator&, StripeRange range, const float* grad,
                            std::uint32_t draws, float* sums);

    // Merge of rows x cols elements, read at `base` and written at `out`, which may be the same,
    // with strides in elements from row to row, and with the factor A packed by panels of `panel`
    // columns: a[(p * rank + j) * panel + lane], zero-padded. b: rows x rank. The factors and the
    // scaling are finite. Returns the largest |result| as bits of fp32, before or after rounding,
    // so that the caller can tell overflow and NaN.
    struct MergeArgs {
        const void* base;
        void* out;
        std::size_t base_stride;
        std::size_t out_stride;
        std::size_t rows;
        std::size_t cols;
        const float* b;
        const float* a;
        std::size_t rank;
        float scaling;
        // Whether `out`, whose rows are then aligned to kLine bytes, is not read again soon.
        bool streams;
    };
    std::uint32_t (*merge_f32)(const MergeArgs&);
    std::uint32_t (*merge_f16)(const MergeArgs&);
    std::uint32_t (*merge_bf16)(const MergeArgs&);
    std::size_t panel;      // columns of one packed panel of A
    std::size_t tile_rows;  // rows of the register tile: cut the work at multiples of it
    // If not 0, merge_bf16 wants each run of so many columns packed as its even columns, then its
    // odd ones.
    std::size_t bf16_pair;

    // By type. values: count * 32 floats; blocks: count of them.
    void (*dequantize[kBlockTypes])(const std::uint8_t* blocks, std::size_t count, float* values);
    void (*quantize[kBlockTypes])(const float* values, std::size_t count, std::uint8_t* blocks);
    void (*quantize_amplified[kBlockTypes])(const float* base, const float* wanted,
                                            std::size_t count, std::uint8_t* blocks);
    // Of (wanted - base)^2, (got - base) (wanted - base) and (got - base)^2, in double: of elements
    // a multiple of 16 apart, then of these sums in order.
    void (*change_sums)(const float* base, const float* wanted, const float* got, std::size_t count,
                        double (&sums)[3]);
};

}  // namespace nola::kernels
