// The vector operations of the kernels in plain GNU vector arithmetic: 4 lanes, any processor.
// Included by kernels-inl.h inside the namespace of the kernel set.

#if defined(__clang__) && defined(__arm__) && defined(__ARM_NEON)
#error \
    "nola-edge: NEON on 32-bit ARM flushes subnormal numbers, and clang uses it for vectors; \
compile with -mfpu=vfpv3-d16 (in CXXFLAGS), or with GCC"
#endif

inline constexpr std::size_t kLanes = 4;
inline constexpr std::size_t kTileRows = 4;
inline constexpr std::size_t kTileVectors = 2;
inline constexpr std::size_t kProjectDraws = 1;

typedef float F32 __attribute__((vector_size(16)));
typedef double F64 __attribute__((vector_size(16)));
typedef std::uint32_t U32 __attribute__((vector_size(16)));

NOLA_INLINE F32 load(const float* p) {
    F32 v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
NOLA_INLINE void store(float* p, F32 v) {
    __builtin_memcpy(p, &v, sizeof v);
}
NOLA_INLINE F32 broadcast(float x) {
    return F32{x, x, x, x};
}
NOLA_INLINE F32 zero() {
    return broadcast(0.0F);
}
NOLA_INLINE F32 add(F32 a, F32 b) {
    return a + b;
}
NOLA_INLINE void store_u32(std::uint32_t* p, U32 v) {
    __builtin_memcpy(p, &v, sizeof v);
}

// A cast between vector types of one size keeps the bits.
NOLA_INLINE F32 as_f32(U32 v) {
    return (F32)v;
}
NOLA_INLINE U32 as_u32(F32 v) {
    return (U32)v;
}

// a * b + c with one rounding on processors without a fused multiply-add. The product of two
// 24-bit significands is exact in double; the sum is rounded to odd (when it is inexact and its
// last bit is even, that bit is set towards the remainder), and rounding such a sum to float
// gives the same as rounding the exact one, since double keeps more than two further bits
// (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
NOLA_INLINE float fma_scalar(float a, float b, float c) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, b, c);
#else
    const double product = static_cast<double>(a) * static_cast<double>(b);
    const double addend = static_cast<double>(c);
    double sum = product + addend;
    const double addend_part = sum - product;
    const double remainder = (product - (sum - addend_part)) + (addend - addend_part);
    std::uint64_t bits;
    __builtin_memcpy(&bits, &sum, sizeof bits);
    // False for a NaN remainder too, which an infinite or NaN operand leaves.
    if ((remainder < 0.0 || remainder > 0.0) && (bits & 1) == 0) {
        bits += (remainder > 0.0) == (sum > 0.0) ? 1 : ~std::uint64_t{0};
        __builtin_memcpy(&sum, &bits, sizeof bits);
    }
    return static_cast<float>(sum);
#endif
}
NOLA_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return F32{fma_scalar(a[0], b[0], c[0]), fma_scalar(a[1], b[1], c[1]),
               fma_scalar(a[2], b[2], c[2]), fma_scalar(a[3], b[3], c[3])};
}

using Words = U32;
NOLA_INLINE Words words_iota(std::uint32_t first) {
    return first + U32{0, 1, 2, 3};
}
NOLA_INLINE Words words_xor(Words a, std::uint32_t x) {
    return a ^ x;
}
NOLA_INLINE Words words_xor(Words a, Words b) {
    return a ^ b;
}
NOLA_INLINE Words words_xor(Words a, Words b, std::uint32_t x) {
    return a ^ b ^ x;
}
NOLA_INLINE void words_multiply(Words a, std::uint32_t m, Words& high, Words& low) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        const std::uint64_t product = std::uint64_t{a[lane]} * m;
        high[lane] = static_cast<std::uint32_t>(product >> 32);
        low[lane] = static_cast<std::uint32_t>(product);
    }
}
NOLA_INLINE U32 words_join(Words a) {
    return a;
}

struct SignTable {
    const float* sums;
};
NOLA_INLINE SignTable load_sign_table(const float* p) {
    return {p};
}
template <int kShift>
NOLA_INLINE F32 signed_sum(SignTable table, U32 index) {
    const U32 nibble = (index >> kShift) & 15U;
    return F32{table.sums[nibble[0]], table.sums[nibble[1]], table.sums[nibble[2]],
               table.sums[nibble[3]]};
}

// 2u - 65535 for the low or high 16 bits u of each lane: the integer is placed in the mantissa
// of 2^23, where the spacing is one, so the subtraction is exact.
NOLA_INLINE F32 uniform_from_mantissa(U32 twice) {
    return as_f32((twice & 0x1FFFEU) | 0x4B000000U) - (8388608.0F + 65535.0F);
}
NOLA_INLINE F32 uniform_low(U32 word) {
    return uniform_from_mantissa(word << 1);
}
NOLA_INLINE F32 uniform_high(U32 word) {
    return uniform_from_mantissa(word >> 15);
}

// sums + g in the lanes whose bit of `word` (from bit kVector * 4) is set.
template <int kVector>
NOLA_INLINE F32 add_where(F32 sums, F32 g, std::uint32_t word) {
    constexpr std::uint32_t kBit = 1U << (4 * kVector);
    const U32 unset =
        ((word & U32{kBit, kBit << 1, kBit << 2, kBit << 3}) == 0U) ? U32{} + ~0U : U32{};
    return sums + as_f32(as_u32(g) & ~unset);
}

NOLA_INLINE U32 max_magnitude(U32 largest, F32 v) {
    const U32 bits = as_u32(v) & 0x7FFFFFFFU;
    return bits > largest ? bits : largest;
}

NOLA_INLINE F32 load_as_f32(const float* p) {
    return load(p);
}
NOLA_INLINE U32 load_u16(const std::uint16_t* p) {
    return U32{p[0], p[1], p[2], p[3]};
}
NOLA_INLINE F32 load_as_f32(const BFloat16* p) {
    return as_f32(load_u16(&p->bits) << 16);
}
// Scaling by 2^112 turns a half's exponent into a float's, subnormals included.
NOLA_INLINE F32 load_as_f32(const Half* p) {
    const U32 half = load_u16(&p->bits);
    const U32 magnitude = (half & 0x7FFFU) << 13;
    const F32 finite = as_f32(magnitude) * as_f32(U32{} + (239U << 23));
    const U32 special = magnitude | 0x7F800000U;
    const U32 bits = magnitude >= (31U << 23) ? special : as_u32(finite);
    return as_f32(bits | ((half & 0x8000U) << 16));
}
NOLA_INLINE void store_rounded(float* p, F32 v) {
    store(p, v);
}
NOLA_INLINE void store_u16(std::uint16_t* p, U32 v) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        p[lane] = static_cast<std::uint16_t>(v[lane]);
    }
}
NOLA_INLINE void store_rounded(BFloat16* p, F32 v) {
    const U32 bits = as_u32(v);
    store_u16(&p->bits, (bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}
NOLA_INLINE void store_rounded(Half* p, F32 v) {
    const U32 sign = (as_u32(v) >> 16) & 0x8000U;
    const U32 magnitude = as_u32(v) & 0x7FFFFFFFU;
    // Normal halves: rebias the exponent, round the 13 surplus bits to nearest even. A carry runs
    // into the exponent as it should, up to infinity.
    const U32 normal = (magnitude - (112U << 23) + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13;
    // Below 2^-14 the spacing of halves is 2^-24, which is that of floats around 0.5: adding 0.5
    // rounds there, and the sum's low bits are the subnormal half.
    const U32 subnormal = as_u32(as_f32(magnitude) + 0.5F) - (126U << 23);
    U32 half = magnitude < (113U << 23) ? subnormal : normal;
    half = magnitude >= 0x477FF000U ? U32{} + 0x7C00U : half;
    half = magnitude > 0x7F800000U ? U32{} + 0x7E00U : half;
    store_u16(&p->bits, half | sign);
}
NOLA_INLINE float from_half(Half half) {
    const Half halves[kLanes] = {half};
    return load_as_f32(halves)[0];
}
NOLA_INLINE Half to_half(float value) {
    Half halves[kLanes];
    store_rounded(halves, broadcast(value));
    return halves[0];
}

// Bytes as lanes, and the low bytes of lanes.
NOLA_INLINE U32 load_bytes(const std::uint8_t* p) {
    return U32{p[0], p[1], p[2], p[3]};
}
NOLA_INLINE void store_bytes(std::uint8_t* p, U32 v) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
        p[lane] = static_cast<std::uint8_t>(v[lane]);
    }
}
NOLA_INLINE std::uint32_t sign_bits(U32 v) {
    const U32 bits = v >> 31;
    return bits[0] | (bits[1] << 1) | (bits[2] << 2) | (bits[3] << 3);
}

NOLA_INLINE F64 load_as_f64(const float* p) {
    return F64{p[0], p[1]};
}

template <class T, class Vector>
NOLA_INLINE T greatest_of_lanes(Vector v) {
    T greatest = v[0];
    for (std::size_t lane = 1; lane < kLanes; ++lane) {
        greatest = v[lane] > greatest ? v[lane] : greatest;
    }
    return greatest;
}
NOLA_INLINE float greatest_lane(F32 v) {
    return greatest_of_lanes<float>(v);
}
NOLA_INLINE std::uint32_t greatest_lane(U32 v) {
    return greatest_of_lanes<std::uint32_t>(v);
}
NOLA_INLINE float least_lane(F32 v) {
    return -greatest_lane(-v);
}

// No type is merged by pairs of vectors here; see avx512-inl.h.
inline constexpr bool kPairedBFloat16 = false;

// Nor can anything be stored past the cache.
inline constexpr bool kStreams = false;

NOLA_INLINE void finish_streams() {}
