// Rows of ggml's quantised types: blocks of 32 elements that share a scale, and a minimum if the
// type's name ends with _1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nola {

// A block is its scale and its minimum as fp16, then (of five bits) the 32 high bits, then the
// codes: a byte each, or the low four bits of elements i and i + 16 in one.
enum class BlockType : std::uint8_t { kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0 };

inline constexpr std::size_t kBlockElements = 32;

constexpr std::size_t block_bytes(BlockType type) {
    constexpr std::size_t kBytes[] = {18, 20, 22, 24, 34};
    return kBytes[static_cast<std::size_t>(type)];
}

// Writes the values of `count` blocks, 32 floats each: scale * code, plus the minimum. The two must
// not overlap.
//
// Deterministic to the bit: the same values on every ISA and for any number of threads.
// Thread-safe. num_threads as for expand.
// Throws std::invalid_argument, naming the argument, before anything is written.
void dequantize(BlockType type, const void* blocks, std::size_t count, float* values,
                int num_threads = 0);

// The other way: each block gets the scale and the codes that ggml's reference quantiser gives it.
// A scale whose reciprocal is infinite goes with codes of 0. A block that holds an infinite value
// or a NaN gets the scale NaN, and a minimum of 0 and codes of 0; one that is too large for fp16
// gets an infinite scale or minimum. Otherwise as dequantize.
void quantize(BlockType type, const float* values, std::size_t count, void* blocks,
              int num_threads = 0);

// Quantises `wanted` so that its change from `base` is kept, which mostly is less than half a step:
// in each block the change is amplified by the factors 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, ... 28,
// in fp32, until <got - base, change> >= |change|^2 for what quantize gives (see change_sums).
// The block is that of the factor whose product came nearest; the smallest of several. Blocks that
// do not change are those of quantize. Otherwise as quantize; `base` and `wanted` may be one.
void quantize_amplified(BlockType type, const float* base, const float* wanted, std::size_t count,
                        void* blocks, int num_threads = 0);

// What rounding has made of a change: sums over the elements of (wanted - base)^2, of
// (got - base) (wanted - base), and of (got - base)^2. Each difference is taken in double, and the
// sums are in an order that depends on `count` alone.
struct ChangeSums {
    double wanted = 0.0;
    double common = 0.0;
    double got = 0.0;

    ChangeSums& operator+=(const ChangeSums& other) {
        wanted += other.wanted;
        common += other.common;
        got += other.got;
        return *this;
    }
};
ChangeSums change_sums(const float* base, const float* wanted, const float* got, std::size_t count);

}  // namespace nola
