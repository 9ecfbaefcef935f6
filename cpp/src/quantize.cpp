#include "nola/quantize.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "alignment.h"
#include "dispatch.h"
#include "parallel.h"

namespace nola {
namespace {

static_assert(kBlockElements == kernels::kBlock);

// Enough to make a thread's turn worthwhile.
constexpr std::size_t kPieceBlocks = 1024;

template <class Body>
void for_pieces(std::size_t count, int num_threads, const Body& body) {
    parallel_for((count + kPieceBlocks - 1) / kPieceBlocks, num_threads, [&](std::size_t piece) {
        const std::size_t first = piece * kPieceBlocks;
        body(first, std::min(kPieceBlocks, count - first));
    });
}

void check_places(const void* blocks, const float* values, std::size_t count) {
    if (count != 0 && blocks == nullptr) {
        throw std::invalid_argument("blocks: null");
    }
    if (count != 0 && values == nullptr) {
        throw std::invalid_argument("values: null");
    }
    check_aligned("values", values, alignof(float));
}

}  // namespace

void dequantize(BlockType type, const void* blocks, std::size_t count, float* values,
                int num_threads) {
    check_places(blocks, values, count);
    const auto kernel = active_kernels().dequantize[static_cast<std::size_t>(type)];
    const auto* bytes = static_cast<const std::uint8_t*>(blocks);
    for_pieces(count, num_threads, [&](std::size_t first, std::size_t number) {
        kernel(bytes + first * block_bytes(type), number, values + first * kBlockElements);
    });
}

void quantize(BlockType type, const float* values, std::size_t count, void* blocks,
              int num_threads) {
    check_places(blocks, values, count);
    const auto kernel = active_kernels().quantize[static_cast<std::size_t>(type)];
    auto* bytes = static_cast<std::uint8_t*>(blocks);
    for_pieces(count, num_threads, [&](std::size_t first, std::size_t number) {
        kernel(values + first * kBlockElements, number, bytes + first * block_bytes(type));
    });
}

void quantize_amplified(BlockType type, const float* base, const float* wanted, std::size_t count,
                        void* blocks, int num_threads) {
    check_places(blocks, wanted, count);
    check_places(blocks, base, count);
    const auto kernel = active_kernels().quantize_amplified[static_cast<std::size_t>(type)];
    auto* bytes = static_cast<std::uint8_t*>(blocks);
    for_pieces(count, num_threads, [&](std::size_t first, std::size_t number) {
        kernel(base + first * kBlockElements, wanted + first * kBlockElements, number,
               bytes + first * block_bytes(type));
    });
}

ChangeSums change_sums(const float* base, const float* wanted, const float* got,
                       std::size_t count) {
    check_aligned("base", base, alignof(float));
    check_aligned("wanted", wanted, alignof(float));
    check_aligned("got", got, alignof(float));
    const FpEnvironment environment;
    double sums[3];
    active_kernels().change_sums(base, wanted, got, count, sums);
    return {sums[0], sums[1], sums[2]};
}

}  // namespace nola
