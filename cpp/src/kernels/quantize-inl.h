// quantize and dequantize: one block of 32 elements at a time, with the operations of ggml's
// reference code in their order, each rounded.
// Included by kernels-inl.h inside the namespace of the kernel set.
//
// Arithmetic is that of GNU vectors, of as many lanes as the set has. What compilers make of bytes
// and of single lanes takes several times the instructions, so these steps are the set's own.

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline constexpr std::size_t kBlockVectors = kBlock / kLanes;
inline constexpr std::int32_t kMagnitude = 0x7FFFFFFF;
inline constexpr std::uint32_t kInfinity = 0x7F800000;

// Where the parts of a block lie, and which codes it has.
template <int kBitsOfCode, bool kIsAffine>
struct Layout {
    static constexpr int kBits = kBitsOfCode;
    static constexpr bool kAffine = kIsAffine;
    static constexpr std::size_t kHighBits = kAffine ? 4 : 2;
    static constexpr std::size_t kCodes = kHighBits + (kBits == 5 ? 4 : 0);
    static constexpr std::size_t kBytes = kCodes + (kBits == 8 ? kBlock : kBlock / 2);
    static constexpr int kLast = (1 << kBits) - 1;
    // The code of 0 where there is no minimum; a code of eight bits has a sign instead.
    static constexpr int kMiddle = kAffine || kBits == 8 ? 0 : 1 << (kBits - 1);
};
using Q4_0 = Layout<4, false>;
using Q4_1 = Layout<4, true>;
using Q5_0 = Layout<5, false>;
using Q5_1 = Layout<5, true>;
using Q8_0 = Layout<8, false>;

template <class T>
NOLA_INLINE T load_as(const void* place) {
    T loaded;
    __builtin_memcpy(&loaded, place, sizeof loaded);
    return loaded;
}
template <class T>
NOLA_INLINE void store_as(void* place, T value) {
    __builtin_memcpy(place, &value, sizeof value);
}

NOLA_INLINE Ints iota() {
    std::int32_t lanes[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        lanes[lane] = static_cast<std::int32_t>(lane);
    }
    return load_as<Ints>(lanes);
}

template <class Block>
NOLA_INLINE Ints read_codes(const std::uint8_t* block, std::size_t vector) {
    const std::size_t first = vector * kLanes;
    const std::uint8_t* codes = block + Block::kCodes;
    if constexpr (Block::kBits == 8) {
        const Ints code = (Ints)load_bytes(codes + first);
        return (code ^ 128) - 128;  // its sign
    } else {
        const Ints pair = (Ints)load_bytes(codes + first % (kBlock / 2));
        Ints code = first < kBlock / 2 ? pair & 15 : pair >> 4;
        if constexpr (Block::kBits == 5) {
            const auto bits = load_as<std::uint32_t>(block + Block::kHighBits) >> first;
            code |= ((static_cast<std::int32_t>(bits) >> iota()) & 1) << 4;
        }
        return code;
    }
}

template <class Block>
NOLA_INLINE void write_codes(const Ints (&codes)[kBlockVectors], std::uint8_t* block) {
    std::uint8_t* out = block + Block::kCodes;
    if constexpr (Block::kBits == 8) {
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kBlockVectors; ++v) {
            store_bytes(out + v * kLanes, (U32)codes[v]);
        }
    } else {
        constexpr std::size_t kHalf = kBlockVectors / 2;
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kHalf; ++v) {
            const Ints pair = (codes[v] & 15) | ((codes[v + kHalf] & 15) << 4);
            store_bytes(out + v * kLanes, (U32)pair);
        }
    }
    if constexpr (Block::kBits == 5) {
        std::uint32_t bits = 0;
#pragma GCC unroll 16
        for (std::size_t v = 0; v < kBlockVectors; ++v) {
            bits |= sign_bits((U32)(codes[v] << 27)) << (v * kLanes);
        }
        store_as(block + Block::kHighBits, bits);
    }
}

template <class Block>
NOLA_INLINE float minimum_of(const std::uint8_t* block) {
    return Block::kAffine ? from_half(load_as<Half>(block + 2)) : 0.0F;
}

template <class Block>
NOLA_INLINE void dequantize_block(const std::uint8_t* block, float* values) {
    const float scale = from_half(load_as<Half>(block));
    const float minimum = minimum_of<Block>(block);
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kBlockVectors; ++v) {
        const Ints code = read_codes<Block>(block, v) - Block::kMiddle;
        Floats value = scale * __builtin_convertvector(code, Floats);
        if constexpr (Block::kAffine) {
            value += minimum;
        }
        store_as(values + v * kLanes, value);
    }
}

struct Extremes {
    float least;
    float greatest;
    std::uint32_t magnitude;  // bits of the largest, above those of infinity for a NaN
};

NOLA_INLINE Extremes extremes_of(const float* values) {
    Floats least = load_as<Floats>(values);
    Floats greatest = least;
    Ints magnitude = (Ints)least & kMagnitude;
#pragma GCC unroll 16
    for (std::size_t v = 1; v < kBlockVectors; ++v) {
        const auto value = load_as<Floats>(values + v * kLanes);
        const Ints bits = (Ints)value & kMagnitude;
        least = value < least ? value : least;
        greatest = value > greatest ? value : greatest;
        magnitude = bits > magnitude ? bits : magnitude;
    }
    return {least_lane((F32)least), greatest_lane((F32)greatest), greatest_lane((U32)magnitude)};
}

// The first of the values that has a magnitude: zeros have signs, and opposites are equally large.
NOLA_INLINE float first_with(const float* values, float magnitude) {
    while (*values != magnitude && *values != -magnitude) {
        ++values;
    }
    return *values;
}

template <class Block>
NOLA_INLINE float minimum_for(const float* values, const Extremes& extremes) {
    if constexpr (!Block::kAffine) {
        return 0.0F;
    }
    return extremes.least == 0.0F ? first_with(values, 0.0F) : extremes.least;
}

template <class Block>
NOLA_INLINE float scale_for(const float* values, const Extremes& extremes) {
    if constexpr (Block::kAffine) {
        // Zeros are added so that two zeros of any signs give +0.
        return ((extremes.greatest + 0.0F) - (extremes.least + 0.0F)) / Block::kLast;
    } else if constexpr (Block::kBits == 8) {
        return load_as<float>(&extremes.magnitude) / 127.0F;
    } else {
        const float opposite = -extremes.least;
        const float largest = extremes.greatest > opposite   ? extremes.greatest
                              : extremes.greatest < opposite ? extremes.least
                                                             : first_with(values, opposite);
        return largest / -Block::kMiddle;
    }
}

// 0 for what is infinite or NaN, as a product with an infinite reciprocal is.
NOLA_INLINE Floats finite_or_zero(Floats value) {
    const Ints finite = ((Ints)value & kMagnitude) < static_cast<std::int32_t>(kInfinity);
    return (Floats)((Ints)value & finite);
}

template <class Block>
NOLA_INLINE Ints nearest_code(Floats value, float inverse, float minimum) {
    if constexpr (Block::kBits == 8) {  // ties go away from zero
        const Floats scaled = finite_or_zero(value * inverse);
        const Floats size = (Floats)((Ints)scaled & kMagnitude);
        const Ints whole = __builtin_convertvector(size, Ints);
        const Ints up = size - __builtin_convertvector(whole, Floats) >= 0.5F;
        const Ints negative = (Ints)scaled >> 31;
        return ((whole - up) ^ negative) - negative;
    } else {
        Floats scaled = value;
        if constexpr (Block::kAffine) {
            scaled -= minimum;
        }
        scaled = finite_or_zero(scaled * inverse + (Block::kMiddle + 0.5F));
        const Ints code = __builtin_convertvector(scaled, Ints);
        return code > Block::kLast ? Ints{} + Block::kLast : code;
    }
}

template <class Block>
NOLA_INLINE void quantize_block(const float* values, std::uint8_t* block) {
    const Extremes extremes = extremes_of(values);
    if (extremes.magnitude >= kInfinity) {
        __builtin_memset(block, 0, Block::kBytes);
        store_as(block, std::uint16_t{0x7E00});
        return;
    }
    const float scale = scale_for<Block>(values, extremes);
    const float minimum = minimum_for<Block>(values, extremes);
    const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
    Ints codes[kBlockVectors];
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kBlockVectors; ++v) {
        codes[v] = nearest_code<Block>(load_as<Floats>(values + v * kLanes), inverse, minimum);
    }
    store_as(block, to_half(scale));
    if constexpr (Block::kAffine) {
        store_as(block + 2, to_half(minimum));
    }
    write_codes<Block>(codes, block);
}

template <class Block>
void dequantize(const std::uint8_t* blocks, std::size_t count, float* values) {
    for (std::size_t i = 0; i < count; ++i) {
        dequantize_block<Block>(blocks + i * Block::kBytes, values + i * kBlock);
    }
}

template <class Block>
void quantize(const float* values, std::size_t count, std::uint8_t* blocks) {
    for (std::size_t i = 0; i < count; ++i) {
        quantize_block<Block>(values + i * kBlock, blocks + i * Block::kBytes);
    }
}

// As many sums side by side as the widest set has lanes, so that every set adds alike.
inline constexpr std::size_t kSums = 16;
inline constexpr std::size_t kSumVectors = 2 * kSums / kLanes;

struct PartialSums {
    F64 wanted[kSumVectors];
    F64 common[kSumVectors];
    F64 got[kSumVectors];
};

NOLA_INLINE void add_changes(PartialSums& sums, const float* base, const float* wanted,
                             const float* got) {
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kSumVectors; ++v) {
        const std::size_t first = v * (kLanes / 2);
        const F64 before = load_as_f64(base + first);
        const F64 wish = load_as_f64(wanted + first) - before;
        const F64 change = load_as_f64(got + first) - before;
        sums.wanted[v] += wish * wish;
        sums.common[v] += change * wish;
        sums.got[v] += change * change;
    }
}

NOLA_INLINE double total(const F64 (&sums)[kSumVectors]) {
    double lanes[kSums];
    __builtin_memcpy(lanes, sums, sizeof lanes);
    double all = 0.0;
    for (const double lane : lanes) {
        all += lane;
    }
    return all;
}

void change_sums(const float* base, const float* wanted, const float* got, std::size_t count,
                 double (&sums)[3]) {
    PartialSums partial{};
    for (; count >= kSums; count -= kSums, base += kSums, wanted += kSums, got += kSums) {
        add_changes(partial, base, wanted, got);
    }
    if (count != 0) {
        float rest[3][kSums] = {};
        __builtin_memcpy(rest[0], base, count * sizeof(float));
        __builtin_memcpy(rest[1], wanted, count * sizeof(float));
        __builtin_memcpy(rest[2], got, count * sizeof(float));
        add_changes(partial, rest[0], rest[1], rest[2]);
    }
    sums[0] = total(partial.wanted);
    sums[1] = total(partial.common);
    sums[2] = total(partial.got);
}

NOLA_INLINE void amplify(const float* base, const float* wanted, float factor, float* values) {
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kBlockVectors; ++v) {
        const auto before = load_as<Floats>(base + v * kLanes);
        const Floats change = load_as<Floats>(wanted + v * kLanes) - before;
        store_as(values + v * kLanes, before + factor * change);
    }
}

// 1, 1.25, 1.5, 1.75, 2, 2.5, ...: four to each power of two.
NOLA_INLINE float amplification(unsigned step) {
    return static_cast<float>((4U + step % 4U) << (step / 4U)) * 0.25F;
}
inline constexpr unsigned kAmplifications = 20;

// The second sum of change_sums for one block, which is the first where `got` is what is wanted.
NOLA_INLINE double sum_in_common(const float* base, const float* wanted, const float* got) {
    F64 sums[kSumVectors]{};
#pragma GCC unroll 16
    for (std::size_t v = 0; v < kBlock / (kLanes / 2); ++v) {
        const std::size_t first = v * (kLanes / 2);
        const F64 before = load_as_f64(base + first);
        sums[v % kSumVectors] +=
            (load_as_f64(got + first) - before) * (load_as_f64(wanted + first) - before);
    }
    return total(sums);
}

template <class Block>
NOLA_INLINE void quantize_amplified_block(const float* base, const float* wanted,
                                          std::uint8_t* block) {
    const double change = sum_in_common(base, wanted, wanted);
    double nearest = 0.0;
    for (unsigned step = 0; step < kAmplifications; ++step) {
        float values[kBlock];
        float got[kBlock];
        std::uint8_t tried[Block::kBytes];
        amplify(base, wanted, amplification(step), values);
        quantize_block<Block>(step == 0 ? wanted : values, tried);
        dequantize_block<Block>(tried, got);
        const double lacking = change - sum_in_common(base, wanted, got);
        const double distance = lacking < 0.0 ? -lacking : lacking;
        if (step == 0 || distance < nearest) {
            nearest = distance;
            __builtin_memcpy(block, tried, Block::kBytes);
        }
        if (lacking <= 0.0) {
            return;
        }
    }
}

template <class Block>
void quantize_amplified(const float* base, const float* wanted, std::size_t count,
                        std::uint8_t* blocks) {
    for (std::size_t i = 0; i < count; ++i) {
        quantize_amplified_block<Block>(base + i * kBlock, wanted + i * kBlock,
                                        blocks + i * Block::kBytes);
    }
}
