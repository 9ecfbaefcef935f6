// merge: a register tile of the product B A, added to the weight and rounded once.
// Included by kernels-inl.h inside the namespace of the kernel set.
//
// A tile is kTileRows x (kTileVectors * kLanes) accumulators; A comes packed by panels of the
// tile's width, so that a tile reads it in order whatever the row length (rows a power of two
// apart would fall into the same cache sets), and the weight is walked along its rows.
//
// A type that is merged by pairs has each 2 * kLanes columns of a panel packed as the even ones,
// then the odd ones, which is how its elements unpack without a shuffle.

inline constexpr std::size_t kPanel = kTileVectors * kLanes;

template <class T>
inline constexpr bool kPaired = false;
template <>
inline constexpr bool kPaired<BFloat16> = kPairedBFloat16;

// Unrolled throughout: an accumulator that is indexed by a variable lives in memory.
template <std::size_t kRows, class T>
NOLA_INLINE U32 merge_tile(const T* base, std::size_t base_stride, T* out, std::size_t out_stride,
                           const float* b, const float* panel, std::size_t rank, F32 scaling,
                           U32 largest) {
    F32 acc[kRows][kTileVectors];
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kTileVectors; ++v) {
            acc[m][v] = zero();
        }
    }
    for (std::size_t j = 0; j < rank; ++j, panel += kPanel) {
        F32 a[kTileVectors];
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kTileVectors; ++v) {
            a[v] = load(panel + v * kLanes);
        }
#pragma GCC unroll 16
        for (std::size_t m = 0; m < kRows; ++m) {
            const F32 factor = broadcast(b[m * rank + j]);
#pragma GCC unroll 16
            for (std::size_t v = 0; v < kTileVectors; ++v) {
                acc[m][v] = fma(factor, a[v], acc[m][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m) {
        const T* from = base + m * base_stride;
        T* to = out + m * out_stride;
        if constexpr (kPaired<T>) {
#pragma GCC unroll 16
            for (std::size_t v = 0; v < kTileVectors; v += 2) {
                auto pair = load_pair_as_f32(from + v * kLanes);
                pair.even = fma(scaling, acc[m][v], pair.even);
                pair.odd = fma(scaling, acc[m][v + 1], pair.odd);
                largest = max_magnitude(largest, store_pair_rounded(to + v * kLanes, pair));
            }
        } else {
#pragma GCC unroll 16
            for (std::size_t v = 0; v < kTileVectors; ++v) {
                const F32 merged = fma(scaling, acc[m][v], load_as_f32(from + v * kLanes));
                largest = max_magnitude(largest, merged);
                store_rounded(to + v * kLanes, merged);
            }
        }
    }
    return largest;
}

// kRows rows across all panels; the last panel, when it is not full, through a copy.
template <std::size_t kRows, class T>
NOLA_INLINE U32 merge_rows(const KernelSet::MergeArgs& args, std::size_t row, U32 largest) {
    const T* base = static_cast<const T*>(args.base) + row * args.base_stride;
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    const float* b = args.b + row * args.rank;
    const F32 scaling = broadcast(args.scaling);
    const std::size_t full = args.cols / kPanel * kPanel;
    std::size_t col = 0;
    for (; col < full; col += kPanel) {
        largest = merge_tile<kRows>(base + col, args.base_stride, out + col, args.out_stride, b,
                                    args.a + col * args.rank, args.rank, scaling, largest);
    }
    if (col < args.cols) {
        const std::size_t bytes = (args.cols - col) * sizeof(T);
        T copy[kRows * kPanel] = {};
        for (std::size_t m = 0; m < kRows; ++m) {
            __builtin_memcpy(copy + m * kPanel, base + m * args.base_stride + col, bytes);
        }
        largest = merge_tile<kRows>(copy, kPanel, copy, kPanel, b, args.a + col * args.rank,
                                    args.rank, scaling, largest);
        for (std::size_t m = 0; m < kRows; ++m) {
            __builtin_memcpy(out + m * args.out_stride + col, copy + m * kPanel, bytes);
        }
    }
    return largest;
}

template <class T>
NOLA_INLINE std::uint32_t merge_weight(const KernelSet::MergeArgs& args) {
    U32 largest{};
    std::size_t row = 0;
    for (; row + kTileRows <= args.rows; row += kTileRows) {
        largest = merge_rows<kTileRows, T>(args, row, largest);
    }
    for (; row < args.rows; ++row) {
        largest = merge_rows<1, T>(args, row, largest);
    }
    std::uint32_t lanes[kLanes];
    store_u32(lanes, largest);
    std::uint32_t magnitude = 0;
    for (const std::uint32_t lane : lanes) {
        if constexpr (kPaired<T>) {  // two magnitudes of bfloat16, the upper half of an fp32
            const std::uint32_t even = lane << 16;
            magnitude = even > magnitude ? even : magnitude;
        }
        magnitude = lane > magnitude ? lane : magnitude;
    }
    return magnitude;
}

std::uint32_t merge_f32(const KernelSet::MergeArgs& args) {
    return merge_weight<float>(args);
}
std::uint32_t merge_f16(const KernelSet::MergeArgs& args) {
    return merge_weight<Half>(args);
}
std::uint32_t merge_bf16(const KernelSet::MergeArgs& args) {
    return merge_weight<BFloat16>(args);
}
