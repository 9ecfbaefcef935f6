// The vector operations of the kernels on AArch64 NEON: 4 lanes.
// Included by kernels-inl.h inside the namespace of the kernel set.

inline constexpr std::size_t kLanes = 4;
inline constexpr std::size_t kTileRows = 6;  // 6 x 4 accumulators + 4 of A + 1 of B: 29 of 32
inline constexpr std::size_t kTileVectors = 4;
inline constexpr std::size_t kProjectDraws = 2;  // 16 accumulators

using F32 = float32x4_t;
using F64 = float64x2_t;
using U32 = uint32x4_t;

NOLA_INLINE F32 load(const float* p) {
    return vld1q_f32(p);
}
NOLA_INLINE void store(float* p, F32 v) {
    vst1q_f32(p, v);
}
NOLA_INLINE F32 zero() {
    return vdupq_n_f32(0.0F);
}
NOLA_INLINE F32 broadcast(float x) {
    return vdupq_n_f32(x);
}
NOLA_INLINE F32 add(F32 a, F32 b) {
    return vaddq_f32(a, b);
}
NOLA_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return vfmaq_f32(c, a, b);
}
NOLA_INLINE void store_u32(std::uint32_t* p, U32 v) {
    vst1q_u32(p, v);
}

using Words = uint32x4_t;
NOLA_INLINE Words words_iota(std::uint32_t first) {
    const uint32x4_t iota = {0, 1, 2, 3};
    return vaddq_u32(vdupq_n_u32(first), iota);
}
NOLA_INLINE Words words_xor(Words a, std::uint32_t x) {
    return veorq_u32(a, vdupq_n_u32(x));
}
NOLA_INLINE Words words_xor(Words a, Words b) {
    return veorq_u32(a, b);
}
NOLA_INLINE Words words_xor(Words a, Words b, std::uint32_t x) {
    return veorq_u32(veorq_u32(a, b), vdupq_n_u32(x));
}
NOLA_INLINE void words_multiply(Words a, std::uint32_t m, Words& high, Words& low) {
    const uint32x4_t factor = vdupq_n_u32(m);
    const uint32x4_t first =
        vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(factor)));
    const uint32x4_t second = vreinterpretq_u32_u64(vmull_high_u32(a, factor));
    low = vuzp1q_u32(first, second);
    high = vuzp2q_u32(first, second);
}
NOLA_INLINE U32 words_join(Words a) {
    return a;
}

// Sixteen signed sums as 64 bytes, looked up byte by byte.
struct SignTable {
    uint8x16x4_t bytes;
};
NOLA_INLINE SignTable load_sign_table(const float* p) {
    return {vld1q_u8_x4(reinterpret_cast<const std::uint8_t*>(p))};
}
template <int kShift>
NOLA_INLINE F32 signed_sum(SignTable table, U32 index) {
    // A nibble n selects the bytes 4n .. 4n+3: n * 0x04040404 + 0x03020100.
    uint32x4_t shifted = index;
    if constexpr (kShift != 0) {
        shifted = vshrq_n_u32(index, kShift);
    }
    const uint32x4_t nibble = vandq_u32(shifted, vdupq_n_u32(15));
    const uint32x4_t selector =
        vmlaq_u32(vdupq_n_u32(0x03020100U), nibble, vdupq_n_u32(0x04040404U));
    return vreinterpretq_f32_u8(vqtbl4q_u8(table.bytes, vreinterpretq_u8_u32(selector)));
}

// 2u - 65535 for the low or high 16 bits u of each lane: the integer is placed in the mantissa
// of 2^23, where the spacing is one, so the subtraction is exact.
NOLA_INLINE F32 uniform_from_mantissa(uint32x4_t twice) {
    const uint32x4_t bits =
        vorrq_u32(vandq_u32(twice, vdupq_n_u32(0x1FFFEU)), vdupq_n_u32(0x4B000000U));
    return vsubq_f32(vreinterpretq_f32_u32(bits), vdupq_n_f32(8388608.0F + 65535.0F));
}
NOLA_INLINE F32 uniform_low(U32 word) {
    return uniform_from_mantissa(vshlq_n_u32(word, 1));
}
NOLA_INLINE F32 uniform_high(U32 word) {
    return uniform_from_mantissa(vshrq_n_u32(word, 15));
}

// sums + g in the lanes whose bit of `word` (from bit kVector * 4) is set.
template <int kVector>
NOLA_INLINE F32 add_where(F32 sums, F32 g, std::uint32_t word) {
    constexpr std::uint32_t kBit = 1U << (4 * kVector);
    const uint32x4_t bits = {kBit, kBit << 1, kBit << 2, kBit << 3};
    const uint32x4_t chosen = vtstq_u32(vdupq_n_u32(word), bits);
    return add(sums, vreinterpretq_f32_u32(vandq_u32(chosen, vreinterpretq_u32_f32(g))));
}

NOLA_INLINE U32 max_magnitude(U32 largest, F32 v) {
    return vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(v), vdupq_n_u32(0x7FFFFFFFU)));
}

NOLA_INLINE F32 load_as_f32(const float* p) {
    return load(p);
}
NOLA_INLINE F32 load_as_f32(const Half* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))));
}
NOLA_INLINE F32 load_as_f32(const BFloat16* p) {
    return vreinterpretq_f32_u32(
        vshll_n_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p)), 16));
}
NOLA_INLINE float from_half(Half half) {
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(half.bits))), 0);
}
NOLA_INLINE Half to_half(float value) {
    return {vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(value))), 0)};
}
NOLA_INLINE void store_rounded(float* p, F32 v) {
    store(p, v);
}
NOLA_INLINE void store_rounded(Half* p, F32 v) {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
}
NOLA_INLINE void store_rounded(BFloat16* p, F32 v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd);
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vshrn_n_u32(rounded, 16));
}

// Bytes as lanes, and the low bytes of lanes.
NOLA_INLINE U32 load_bytes(const std::uint8_t* p) {
    std::uint32_t bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(bytes))));
}
NOLA_INLINE void store_bytes(std::uint8_t* p, U32 v) {
    const uint16x4_t words = vmovn_u32(v);
    const uint8x8_t bytes = vmovn_u16(vcombine_u16(words, words));
    const std::uint32_t all = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
    __builtin_memcpy(p, &all, sizeof all);
}
NOLA_INLINE std::uint32_t sign_bits(U32 v) {
    const int32x4_t places = {0, 1, 2, 3};
    return vaddvq_u32(vshlq_u32(vshrq_n_u32(v, 31), places));
}

NOLA_INLINE F64 load_as_f64(const float* p) {
    return vcvt_f64_f32(vld1_f32(p));
}

NOLA_INLINE float least_lane(F32 v) {
    return vminvq_f32(v);
}
NOLA_INLINE float greatest_lane(F32 v) {
    return vmaxvq_f32(v);
}
NOLA_INLINE std::uint32_t greatest_lane(U32 v) {
    return vmaxvq_u32(v);
}

// No type is merged by pairs of vectors here; see avx512-inl.h.
inline constexpr bool kPairedBFloat16 = false;

// Nor can anything be stored past the cache.
inline constexpr bool kStreams = false;

NOLA_INLINE void finish_streams() {}
