#include "nola/merge.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "alignment.h"
#include "dispatch.h"
#include "parallel.h"

namespace nola {
namespace {

using MergeArgs = kernels::KernelSet::MergeArgs;

// The least magnitude, as fp32 bits, that rounds to infinity in a type (or is one, or a NaN).
std::uint32_t overflow_threshold(ElementType type) {
    switch (type) {
        case ElementType::kFloat16:
            return 0x477FF000U;  // 65520
        case ElementType::kBFloat16:
            return 0x7F7F8000U;
        case ElementType::kFloat32:
            break;
    }
    return 0x7F800000U;
}

auto merge_kernel(const kernels::KernelSet& kernel_set, ElementType type) {
    switch (type) {
        case ElementType::kFloat16:
            return kernel_set.merge_f16;
        case ElementType::kBFloat16:
            return kernel_set.merge_bf16;
        case ElementType::kFloat32:
            break;
    }
    return kernel_set.merge_f32;
}

// Packs some columns of a row of A: as they are, or of each run of `pair` the even ones before the
// odd ones.
void pack_row(const float* a, std::size_t count, std::size_t pair, float* packed) {
    if (pair == 0) {
        std::copy_n(a, count, packed);
        return;
    }
    const std::size_t half = pair / 2;
    for (; count >= pair; count -= pair, a += pair, packed += pair) {
        for (std::size_t i = 0; i < half; ++i) {
            packed[i] = a[2 * i];
            packed[half + i] = a[2 * i + 1];
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        packed[i % 2 * half + i / 2] = a[i];
    }
}

// Some columns of A (rank x stride) as panels of `width` columns, each rank x width, zero-padded.
std::vector<float> pack_panels(const LowRank& update, std::size_t stride, std::size_t first,
                               std::size_t cols, std::size_t width, std::size_t pair,
                               int num_threads) {
    // No kernel set has an empty panel, which the analyzer cannot see.
    // NOLINTNEXTLINE(clang-analyzer-core.DivideZero)
    const std::size_t panels = (cols + width - 1) / width;
    std::vector<float> packed(panels * update.rank * width);
    parallel_for(panels, num_threads, [&](std::size_t panel) {
        const std::size_t col = panel * width;
        const std::size_t count = std::min(width, cols - col);
        float* row = packed.data() + panel * update.rank * width;
        for (std::size_t j = 0; j < update.rank; ++j, row += width) {
            pack_row(update.a + j * stride + first + col, count, pair, row);
        }
    });
    return packed;
}

// Without a way out of the loop, which would keep it from being vectorised.
bool all_finite(const float* values, std::size_t count) {
    constexpr std::uint32_t kExponent = 0x7F800000U;
    std::uint32_t found = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint32_t bits = 0;
        std::memcpy(&bits, values + i, sizeof bits);
        found |= static_cast<std::uint32_t>((bits & kExponent) == kExponent);
    }
    return found == 0;
}

// Columns whose share of A stays in the second-level cache while many rows pass over it.
std::size_t block_cols(std::size_t rank, std::size_t cols, std::size_t panel) {
    constexpr std::size_t kCachedFloats = std::size_t{64} * 1024;
    const std::size_t panels =
        std::max<std::size_t>(1, kCachedFloats / std::max<std::size_t>(1, rank * panel));
    return std::min((cols + panel - 1) / panel, panels) * panel;
}

// Columns that are packed at a time, so that the copy of A stays small: whole blocks of columns.
std::size_t packed_cols(std::size_t rank, std::size_t block) {
    constexpr std::size_t kPackedFloats = std::size_t{1} << 18;
    return std::max<std::size_t>(1, kPackedFloats / std::max<std::size_t>(1, rank * block)) * block;
}

void check_place(const char* name, const void* place, std::size_t stride, const Weight& weight) {
    if (place == nullptr) {
        throw std::invalid_argument(std::string(name) + ": null");
    }
    if (stride < weight.shape.cols) {
        throw std::invalid_argument(std::string(name) + ": has a stride of less than a row");
    }
    check_aligned(name, place, element_size(weight.type));
}

// Refuses to write where something is still to be read.
void check_apart(const Weight& weight) {
    const auto begin = [](const void* place) { return reinterpret_cast<std::uintptr_t>(place); };
    const auto end = [&](const void* place, std::size_t stride) {
        const std::size_t elements = (weight.shape.rows - 1) * stride + weight.shape.cols;
        return begin(place) + elements * element_size(weight.type);
    };
    const bool one = weight.base == weight.out && weight.base_stride == weight.out_stride;
    if (!one && begin(weight.base) < end(weight.out, weight.out_stride) &&
        begin(weight.out) < end(weight.base, weight.base_stride)) {
        throw std::invalid_argument("out: overlaps base in memory, and is not the same");
    }
}

void check_factors(const LowRank& update) {
    if ((update.a == nullptr || update.b == nullptr) && update.rank != 0) {
        throw std::invalid_argument("update: a factor is null");
    }
    check_aligned("lora_b", update.b, alignof(float));
    check_aligned("lora_a", update.a, alignof(float));
}

// The column from which on a weight is written past the cache, where in every row a line begins:
// it is too large to be found there afterwards. All columns if it is not.
std::size_t first_streamed(const Weight& weight) {
    constexpr std::size_t kStreamedBytes = std::size_t{1} << 20;
    const std::size_t size = element_size(weight.type);
    const std::size_t ahead = (0 - reinterpret_cast<std::uintptr_t>(weight.out)) % kernels::kLine;
    const bool worth = weight.base != weight.out &&
                       weight.out_stride * size % kernels::kLine == 0 &&
                       weight.shape.rows * weight.shape.cols * size >= kStreamedBytes;
    return worth ? std::min(ahead / size, weight.shape.cols) : weight.shape.cols;
}

// Where a kernel reads and writes from an element on.
MergeArgs place_of(const Weight& weight, std::size_t row, std::size_t col) {
    const std::size_t size = element_size(weight.type);
    MergeArgs args{};
    args.base = static_cast<const char*>(weight.base) + (row * weight.base_stride + col) * size;
    args.out = static_cast<char*>(weight.out) + (row * weight.out_stride + col) * size;
    args.base_stride = weight.base_stride;
    args.out_stride = weight.out_stride;
    return args;
}

bool merge_checked(const Weight& weight, const LowRank& update, int num_threads) {
    const std::size_t rows = weight.shape.rows;
    const std::size_t cols = weight.shape.cols;
    const ElementType type = weight.type;
    if (!std::isfinite(update.scaling) || !all_finite(update.b, rows * update.rank) ||
        !all_finite(update.a, update.rank * cols)) {
        return false;
    }
    const kernels::KernelSet& kernel_set = active_kernels();
    const auto kernel = merge_kernel(kernel_set, type);
    const std::size_t pair = type == ElementType::kBFloat16 ? kernel_set.bf16_pair : 0;
    const std::size_t col_step = block_cols(update.rank, cols, kernel_set.panel);
    const std::size_t row_step = kernel_set.tile_rows * 8;
    std::atomic<bool> finite{true};
    const std::size_t group_step = packed_cols(update.rank, col_step);
    const auto merge_part = [&](const float* packed, std::size_t row, std::size_t col,
                                std::size_t count, bool streams) {
        MergeArgs args = place_of(weight, row, col);
        args.rows = std::min(row_step, rows - row);
        args.cols = count;
        args.b = update.b + row * update.rank;
        args.a = packed;
        args.rank = update.rank;
        args.scaling = update.scaling;
        args.streams = streams;
        if (kernel(args) >= overflow_threshold(type)) {
            finite.store(false, std::memory_order_relaxed);
        }
    };
    const auto pack = [&](std::size_t first, std::size_t count) {
        return pack_panels(update, cols, first, count, kernel_set.panel, pair, num_threads);
    };
    // Columns before the first that is streamed are merged with those that follow, while the line
    // that they end in is in the cache.
    const std::size_t streamed = first_streamed(weight);
    const std::size_t before = streamed < cols ? streamed : 0;
    const std::vector<float> packed_before = pack(0, before);
    for (std::size_t group = before; group < cols; group += group_step) {
        const std::size_t group_cols = std::min(group_step, cols - group);
        const std::vector<float> packed = pack(group, group_cols);
        // No kernel set has an empty tile or panel, which the analyzer cannot see.
        // NOLINTBEGIN(clang-analyzer-core.DivideZero)
        const std::size_t row_blocks = (rows + row_step - 1) / row_step;
        const std::size_t col_blocks = (group_cols + col_step - 1) / col_step;
        // NOLINTEND(clang-analyzer-core.DivideZero)
        // Row blocks fastest: consecutive pieces share a block of A.
        parallel_for(row_blocks * col_blocks, num_threads, [&](std::size_t piece) {
            const std::size_t row = piece % row_blocks * row_step;
            const std::size_t col = piece / row_blocks * col_step;
            if (group + col == before && before != 0) {
                merge_part(packed_before.data(), row, 0, before, false);
            }
            merge_part(packed.data() + col * update.rank, row, group + col,
                       std::min(col_step, group_cols - col), streamed < cols);
        });
    }
    return finite.load(std::memory_order_relaxed);
}

}  // namespace

void scale(float* values, std::size_t count, double factor) {
    check_aligned("values", values, alignof(float));
    const FpEnvironment environment;
    const auto rounded = static_cast<float>(factor);
    for (std::size_t i = 0; i < count; ++i) {
        values[i] *= rounded;
    }
}

bool merge(const Weight& weight, const LowRank& update, int num_threads) {
    if (weight.shape.rows == 0 || weight.shape.cols == 0) {
        return true;
    }
    check_place("base", weight.base, weight.base_stride, weight);
    check_place("out", weight.out, weight.out_stride, weight);
    check_apart(weight);
    check_factors(update);
    return merge_checked(weight, update, num_threads);
}

bool merge(void* weight, ElementType type, std::size_t rows, std::size_t cols,
           const LowRank& update, int num_threads) {
    const Weight in_place{weight, weight, type, {rows, cols}, cols, cols};
    if (rows == 0 || cols == 0) {
        return true;
    }
    check_place("weight", weight, cols, in_place);
    check_factors(update);
    return merge_checked(in_place, update, num_threads);
}

}  // namespace nola
