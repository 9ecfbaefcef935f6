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
// Vectors of accumulators that are loaded and stored at a time.
template <class T>
inline constexpr std::size_t kVectors = kPaired<T> ? 2 : 1;
// Whether a type can be streamed: a line that is written in parts is slower than one that is read.
template <class T>
inline constexpr bool kWholeLines = kPanel * sizeof(T) % kLine == 0 && kStreams;

// Asks for what is to be read some panels later, of these rows or of those below: what is streamed
// is not in the cache, and comes while others are multiplied.
template <std::size_t kRows, class T>
NOLA_INLINE void prefetch_ahead(const KernelSet::MergeArgs& args, const T* base, const T* full) {
    constexpr std::size_t kAhead = 4 * kPanel;
    const T* place = base + kAhead;
    if (static_cast<std::size_t>(full - base) <= kAhead) {
        place += kRows * args.base_stride - args.cols / kPanel * kPanel;
    }
    for (std::size_t m = 0; m < kRows; ++m, place += args.base_stride) {
#pragma GCC unroll 16
        for (std::size_t at = 0; at < kPanel; at += kLine / sizeof(T)) {
            __builtin_prefetch(place + at);
        }
    }
}

template <bool kStream, class T>
NOLA_INLINE void write(T* place, F32 values) {
    if constexpr (kStream) {
        stream_rounded(place, values);
    } else {
        store_rounded(place, values);
    }
}

template <bool kStream, class T>
NOLA_INLINE auto write_pair(T* place, F32 even, F32 odd) {
    if constexpr (kStream) {
        return stream_pair_rounded(place, {even, odd});
    } else {
        return store_pair_rounded(place, {even, odd});
    }
}

// Unrolled throughout: an accumulator that is indexed by a variable lives in memory. A function of
// its own: with the loops around it in the same one, there are too few registers, and a vector of A
// is kept in memory. No vector is passed by value, which not every ABI knows how to.
template <std::size_t kRows, bool kStream, class T>
NOLA_NOINLINE void merge_tile(const T* base, std::size_t base_stride, T* out,
                              std::size_t out_stride, const float* b, const float* panel,
                              std::size_t rank, float scaling, U32& largest) {
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
            const F32 x = broadcast(b[m * rank + j]);
#pragma GCC unroll 16
            for (std::size_t v = 0; v < kTileVectors; ++v) {
                acc[m][v] = fma(x, a[v], acc[m][v]);
            }
        }
    }
    const F32 scale = broadcast(scaling);
    U32 magnitudes = largest;
    // All is read before the first element is written: the compiler need not care that the two
    // places may be one, and few addresses are alive at a time.
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m) {
        const T* row = base + m * base_stride;
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kTileVectors; v += kVectors<T>) {
            if constexpr (kPaired<T>) {
                const auto pair = load_pair_as_f32(row + v * kLanes);
                acc[m][v] = fma(scale, acc[m][v], pair.even);
                acc[m][v + 1] = fma(scale, acc[m][v + 1], pair.odd);
            } else {
                acc[m][v] = fma(scale, acc[m][v], load_as_f32(row + v * kLanes));
            }
        }
    }
#pragma GCC unroll 16
    for (std::size_t m = 0; m < kRows; ++m) {
        T* row = out + m * out_stride;
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kTileVectors; v += kVectors<T>) {
            T* place = row + v * kLanes;
            if constexpr (kPaired<T>) {
                const auto bits = write_pair<kStream>(place, acc[m][v], acc[m][v + 1]);
                magnitudes = max_magnitude(magnitudes, bits);
            } else {
                magnitudes = max_magnitude(magnitudes, acc[m][v]);
                write<kStream>(place, acc[m][v]);
            }
        }
    }
    largest = magnitudes;
}

// kRows rows across all panels; the last panel, when it is not full, through a copy.
template <std::size_t kRows, bool kStream, class T>
NOLA_INLINE void merge_rows(const KernelSet::MergeArgs& args, std::size_t row, U32& largest) {
    const T* base = static_cast<const T*>(args.base) + row * args.base_stride;
    T* out = static_cast<T*>(args.out) + row * args.out_stride;
    const float* b = args.b + row * args.rank;
    const float* panel = args.a;
    const T* const full = base + args.cols / kPanel * kPanel;
    for (; base < full; base += kPanel, out += kPanel, panel += kPanel * args.rank) {
        if constexpr (kStream) {
            prefetch_ahead<kRows>(args, base, full);
        }
        merge_tile<kRows, kStream>(base, args.base_stride, out, args.out_stride, b, panel,
                                   args.rank, args.scaling, largest);
    }
    if (args.cols % kPanel != 0) {
        const std::size_t bytes = args.cols % kPanel * sizeof(T);
        T copy[kRows * kPanel] = {};
        for (std::size_t m = 0; m < kRows; ++m) {
            __builtin_memcpy(copy + m * kPanel, base + m * args.base_stride, bytes);
        }
        merge_tile<kRows, false>(copy, kPanel, copy, kPanel, b, panel, args.rank, args.scaling,
                                 largest);
        for (std::size_t m = 0; m < kRows; ++m) {
            __builtin_memcpy(out + m * args.out_stride, copy + m * kPanel, bytes);
        }
    }
}

template <bool kStream, class T>
NOLA_INLINE std::uint32_t merge_weight(const KernelSet::MergeArgs& args) {
    U32 largest{};
    std::size_t row = 0;
    for (; row + kTileRows <= args.rows; row += kTileRows) {
        merge_rows<kTileRows, kStream, T>(args, row, largest);
    }
    for (; row < args.rows; ++row) {
        merge_rows<1, kStream, T>(args, row, largest);
    }
    if constexpr (kStream) {
        finish_streams();
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

template <class T>
NOLA_INLINE std::uint32_t merge_any(const KernelSet::MergeArgs& args) {
    if constexpr (kWholeLines<T>) {
        if (args.streams) {
            return merge_weight<true, T>(args);
        }
    }
    return merge_weight<false, T>(args);
}

std::uint32_t merge_f32(const KernelSet::MergeArgs& args) {
    return merge_any<float>(args);
}
std::uint32_t merge_f16(const KernelSet::MergeArgs& args) {
    return merge_any<Half>(args);
}
std::uint32_t merge_bf16(const KernelSet::MergeArgs& args) {
    return merge_any<BFloat16>(args);
}
