// The vector operations of the kernels on AVX2 with FMA and F16C: 8 lanes.
// Included by kernels-inl.h inside the namespace of the kernel set.

#include "kernels/simd/f16c-inl.h"

inline constexpr std::size_t kLanes = 8;
inline constexpr std::size_t kTileRows = 6;  // 6 x 2 accumulators + 2 of A + 1 of B: 15 of 16
inline constexpr std::size_t kTileVectors = 2;
inline constexpr std::size_t kProjectDraws = 2;  // 8 accumulators hide the latency of the add

using F32 = __m256;
using F64 = __m256d;
using U32 = __m256i;

NOLA_INLINE F32 load(const float* p) {
    return _mm256_loadu_ps(p);
}
NOLA_INLINE void store(float* p, F32 v) {
    _mm256_storeu_ps(p, v);
}
NOLA_INLINE F32 zero() {
    return _mm256_setzero_ps();
}
NOLA_INLINE F32 broadcast(float x) {
    return _mm256_set1_ps(x);
}
NOLA_INLINE F32 add(F32 a, F32 b) {
    return _mm256_add_ps(a, b);
}
NOLA_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return _mm256_fmadd_ps(a, b, c);
}
NOLA_INLINE void store_u32(std::uint32_t* p, U32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}

// Philox words as 64-bit lanes, blocks of even and of odd index apart: the widening multiply
// reads the low halves and leaves the high half of the product one shift away, so a round needs
// no shuffle. The upper 32 bits of a lane are never read.
struct Words {
    __m256i even;
    __m256i odd;
};
NOLA_INLINE __m256i words_scalar(std::uint32_t x) {
    return _mm256_set1_epi64x(static_cast<long long>(x));
}
NOLA_INLINE Words words_iota(std::uint32_t first) {
    const __m256i base = words_scalar(first);
    return {_mm256_add_epi64(base, _mm256_setr_epi64x(0, 2, 4, 6)),
            _mm256_add_epi64(base, _mm256_setr_epi64x(1, 3, 5, 7))};
}
NOLA_INLINE Words words_xor(Words a, std::uint32_t x) {
    const __m256i v = words_scalar(x);
    return {_mm256_xor_si256(a.even, v), _mm256_xor_si256(a.odd, v)};
}
NOLA_INLINE Words words_xor(Words a, Words b) {
    return {_mm256_xor_si256(a.even, b.even), _mm256_xor_si256(a.odd, b.odd)};
}
NOLA_INLINE Words words_xor(Words a, Words b, std::uint32_t x) {
    return words_xor(words_xor(a, x), b);
}
NOLA_INLINE void words_multiply(Words a, std::uint32_t m, Words& high, Words& low) {
    const __m256i factor = words_scalar(m);
    low = {_mm256_mul_epu32(a.even, factor), _mm256_mul_epu32(a.odd, factor)};
    high = {_mm256_srli_epi64(low.even, 32), _mm256_srli_epi64(low.odd, 32)};
}
NOLA_INLINE U32 words_join(Words a) {
    return _mm256_blend_epi32(a.even, _mm256_slli_epi64(a.odd, 32), 0xAA);
}

// Sixteen signed sums in two registers; complementary signs give opposite sums, so eight would
// do, but two permutes and a blend take fewer operations than restoring the sign.
struct SignTable {
    __m256 low;
    __m256 high;
};
NOLA_INLINE SignTable load_sign_table(const float* p) {
    return {load(p), load(p + 8)};
}
template <int kShift>
NOLA_INLINE F32 signed_sum(SignTable table, U32 index) {
    const __m256i nibble = _mm256_srli_epi32(index, kShift);
    const __m256 choice = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28 - kShift));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, nibble),
                            _mm256_permutevar8x32_ps(table.high, nibble), choice);
}

// 2u - 65535 for the low or high 16 bits u of each lane: the integer is placed in the mantissa
// of 2^23, where the spacing is one, so the subtraction is exact.
NOLA_INLINE F32 uniform_from_mantissa(__m256i twice) {
    const __m256i bits = _mm256_or_si256(_mm256_and_si256(twice, _mm256_set1_epi32(0x1FFFE)),
                                         _mm256_set1_epi32(0x4B000000));
    return _mm256_sub_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(8388608.0F + 65535.0F));
}
NOLA_INLINE F32 uniform_low(U32 word) {
    return uniform_from_mantissa(_mm256_slli_epi32(word, 1));
}
NOLA_INLINE F32 uniform_high(U32 word) {
    return uniform_from_mantissa(_mm256_srli_epi32(word, 15));
}

// sums + g in the lanes whose bit of `word` (from bit kVector * 8) is set.
template <int kVector>
NOLA_INLINE F32 add_where(F32 sums, F32 g, std::uint32_t word) {
    constexpr int kTop = 31 - 8 * kVector;
    const __m256i sign =
        _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(word)),
                          _mm256_setr_epi32(kTop, kTop - 1, kTop - 2, kTop - 3, kTop - 4, kTop - 5,
                                            kTop - 6, kTop - 7));
    return add(sums, _mm256_blendv_ps(zero(), g, _mm256_castsi256_ps(sign)));
}

NOLA_INLINE U32 max_magnitude(U32 largest, F32 v) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_max_epu32(largest, bits);
}

NOLA_INLINE F32 load_as_f32(const float* p) {
    return load(p);
}
NOLA_INLINE F32 load_as_f32(const Half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
NOLA_INLINE void store_rounded(float* p, F32 v) {
    store(p, v);
}
NOLA_INLINE void store_rounded(Half* p, F32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Bytes as lanes, and the low bytes of lanes.
NOLA_INLINE U32 load_bytes(const std::uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
NOLA_INLINE void store_bytes(std::uint8_t* p, U32 v) {
    const __m256i low = _mm256_set1_epi32(0x0C080400);
    const __m256i bytes = _mm256_shuffle_epi8(v, low);  // in the first lane of each half
    const __m128i all =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), all);
}
NOLA_INLINE std::uint32_t sign_bits(U32 v) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(v)));
}

NOLA_INLINE F64 load_as_f64(const float* p) {
    return _mm256_cvtps_pd(_mm_loadu_ps(p));
}

NOLA_INLINE float least_lane(F32 v) {
    __m128 least = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    least = _mm_min_ps(least, _mm_movehl_ps(least, least));
    return _mm_cvtss_f32(_mm_min_ss(least, _mm_movehdup_ps(least)));
}
NOLA_INLINE float greatest_lane(F32 v) {
    __m128 greatest = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    greatest = _mm_max_ps(greatest, _mm_movehl_ps(greatest, greatest));
    return _mm_cvtss_f32(_mm_max_ss(greatest, _mm_movehdup_ps(greatest)));
}
NOLA_INLINE std::uint32_t greatest_lane(U32 v) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4E));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xB1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(most));
}

// Bfloat16 goes by pairs of vectors, even and odd columns apart: unpacking and packing are then a
// shift and a mask of whole registers, with no shuffle.
inline constexpr bool kPairedBFloat16 = true;

struct Pair {
    F32 even;
    F32 odd;
};
NOLA_INLINE Pair load_pair_as_f32(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)))};
}
// The rounded bits in the upper half of each lane.
NOLA_INLINE U32 round_to_upper_half(F32 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
}
NOLA_INLINE U32 store_pair_rounded(BFloat16* p, Pair v) {
    const __m256i even = _mm256_srli_epi32(round_to_upper_half(v.even), 16);
    const __m256i bits = _mm256_blend_epi16(even, round_to_upper_half(v.odd), 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
    return bits;
}
// The larger magnitudes of two vectors of bfloat16, in their 16-bit lanes.
NOLA_INLINE U32 max_magnitude(U32 largest, U32 bits) {
    return _mm256_max_epu16(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFF7FFF)));
}

// See avx512-inl.h. Two vectors of two-byte elements are no whole line of the cache.
inline constexpr bool kStreams = true;

NOLA_INLINE void stream_rounded(float* p, F32 v) {
    _mm256_stream_ps(p, v);
}
NOLA_INLINE void finish_streams() {
    _mm_sfence();
}
