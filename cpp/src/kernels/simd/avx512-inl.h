// The vector operations of the kernels on AVX-512 (F, BW, DQ, VL): 16 lanes.
// Included by kernels-inl.h inside the namespace of the kernel set.

#include "kernels/simd/f16c-inl.h"

inline constexpr std::size_t kLanes = 16;
inline constexpr std::size_t kTileRows = 6;  // 6 x 4 accumulators + 4 of A + 1 of B: 29 of 32
inline constexpr std::size_t kTileVectors = 4;
inline constexpr std::size_t kProjectDraws = 4;  // 8 accumulators hide the latency of the add

using F32 = __m512;
using F64 = __m512d;
using U32 = __m512i;

NOLA_INLINE F32 load(const float* p) {
    return _mm512_loadu_ps(p);
}
NOLA_INLINE void store(float* p, F32 v) {
    _mm512_storeu_ps(p, v);
}
NOLA_INLINE F32 zero() {
    return _mm512_setzero_ps();
}
NOLA_INLINE F32 broadcast(float x) {
    return _mm512_set1_ps(x);
}
NOLA_INLINE F32 add(F32 a, F32 b) {
    return _mm512_add_ps(a, b);
}
NOLA_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return _mm512_fmadd_ps(a, b, c);
}
NOLA_INLINE void store_u32(std::uint32_t* p, U32 v) {
    _mm512_storeu_si512(p, v);
}

// Philox words as 64-bit lanes, blocks of even and of odd index apart: the widening multiply
// reads the low halves and leaves the high half of the product one shift away, so a round needs
// no shuffle. The upper 32 bits of a lane are never read.
struct Words {
    __m512i even;
    __m512i odd;
};
NOLA_INLINE Words words_iota(std::uint32_t first) {
    const __m512i base = _mm512_set1_epi64(static_cast<long long>(first));
    return {_mm512_add_epi64(base, _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14)),
            _mm512_add_epi64(base, _mm512_setr_epi64(1, 3, 5, 7, 9, 11, 13, 15))};
}
NOLA_INLINE __m512i words_scalar(std::uint32_t x) {
    return _mm512_set1_epi64(static_cast<long long>(x));
}
NOLA_INLINE Words words_xor(Words a, std::uint32_t x) {
    const __m512i v = words_scalar(x);
    return {_mm512_xor_si512(a.even, v), _mm512_xor_si512(a.odd, v)};
}
NOLA_INLINE Words words_xor(Words a, Words b) {
    return {_mm512_xor_si512(a.even, b.even), _mm512_xor_si512(a.odd, b.odd)};
}
NOLA_INLINE Words words_xor(Words a, Words b, std::uint32_t x) {
    const __m512i v = words_scalar(x);
    return {_mm512_ternarylogic_epi64(a.even, b.even, v, 0x96),
            _mm512_ternarylogic_epi64(a.odd, b.odd, v, 0x96)};
}
NOLA_INLINE void words_multiply(Words a, std::uint32_t m, Words& high, Words& low) {
    const __m512i factor = words_scalar(m);
    low = {_mm512_mul_epu32(a.even, factor), _mm512_mul_epu32(a.odd, factor)};
    high = {_mm512_srli_epi64(low.even, 32), _mm512_srli_epi64(low.odd, 32)};
}
NOLA_INLINE U32 words_join(Words a) {
    return _mm512_mask_shuffle_epi32(a.even, 0xAAAA, a.odd, _MM_PERM_CCAA);
}

// Sixteen signed sums, looked up by the low four bits of each lane: one permute.
struct SignTable {
    __m512 sums;
};
NOLA_INLINE SignTable load_sign_table(const float* p) {
    return {_mm512_loadu_ps(p)};
}
template <int kShift>
NOLA_INLINE F32 signed_sum(SignTable table, U32 index) {
    return _mm512_permutexvar_ps(_mm512_srli_epi32(index, kShift), table.sums);
}

// 2u - 65535 for the low or high 16 bits u of each lane: the integer is placed in the mantissa
// of 2^23, where the spacing is one, so the subtraction is exact.
NOLA_INLINE F32 uniform_low(U32 word) {
    const __m512i bits =
        _mm512_ternarylogic_epi32(_mm512_slli_epi32(word, 1), _mm512_set1_epi32(0x1FFFE),
                                  _mm512_set1_epi32(0x4B000000), 0xEA);
    return _mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(8388608.0F + 65535.0F));
}
NOLA_INLINE F32 uniform_high(U32 word) {
    return uniform_low(_mm512_srli_epi32(word, 16));
}

// sums + g in the lanes whose bit of `word` (from bit kVector * 16) is set.
template <int kVector>
NOLA_INLINE F32 add_where(F32 sums, F32 g, std::uint32_t word) {
    return _mm512_mask_add_ps(sums, static_cast<__mmask16>(word >> (16 * kVector)), sums, g);
}

NOLA_INLINE U32 max_magnitude(U32 largest, F32 v) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7FFFFFFF));
    return _mm512_max_epu32(largest, bits);
}

NOLA_INLINE F32 load_as_f32(const float* p) {
    return load(p);
}
NOLA_INLINE F32 load_as_f32(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
NOLA_INLINE void store_rounded(float* p, F32 v) {
    store(p, v);
}
NOLA_INLINE void store_rounded(Half* p, F32 v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Bytes as lanes, and the low bytes of lanes.
NOLA_INLINE U32 load_bytes(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
NOLA_INLINE void store_bytes(std::uint8_t* p, U32 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
NOLA_INLINE std::uint32_t sign_bits(U32 v) {
    return _mm512_movepi32_mask(v);
}

NOLA_INLINE F64 load_as_f64(const float* p) {
    return _mm512_cvtps_pd(_mm256_loadu_ps(p));
}

NOLA_INLINE float least_lane(F32 v) {
    return _mm512_reduce_min_ps(v);
}
NOLA_INLINE float greatest_lane(F32 v) {
    return _mm512_reduce_max_ps(v);
}
NOLA_INLINE std::uint32_t greatest_lane(U32 v) {
    return _mm512_reduce_max_epu32(v);
}

// Bfloat16 goes by pairs of vectors, even and odd columns apart: unpacking and packing are then a
// shift and a mask of whole registers, with no shuffle.
inline constexpr bool kPairedBFloat16 = true;

struct Pair {
    F32 even;
    F32 odd;
};
NOLA_INLINE Pair load_pair_as_f32(const BFloat16* p) {
    const __m512i bits = _mm512_loadu_si512(p);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)))};
}
// The rounded bits in the upper half of each lane. Not vcvtneps2bf16, which flushes subnormals.
NOLA_INLINE U32 round_to_upper_half(F32 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i up = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    return _mm512_mask_add_epi32(up, odd, up, _mm512_set1_epi32(1));
}
NOLA_INLINE U32 round_pair(Pair v) {
    const __m512i even = _mm512_srli_epi32(round_to_upper_half(v.even), 16);
    return _mm512_ternarylogic_epi32(round_to_upper_half(v.odd), even, _mm512_set1_epi32(-0x10000),
                                     0xE4);
}
NOLA_INLINE U32 store_pair_rounded(BFloat16* p, Pair v) {
    const __m512i bits = round_pair(v);
    _mm512_storeu_si512(p, bits);
    return bits;
}
// The larger magnitudes of two vectors of bfloat16, in their 16-bit lanes.
NOLA_INLINE U32 max_magnitude(U32 largest, U32 bits) {
    return _mm512_max_epu16(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFF7FFF)));
}

// Stores past the cache, to an address that is aligned to the vector's size: nothing is read to be
// overwritten, and nothing else is pushed out. finish_streams() comes before others may look.
inline constexpr bool kStreams = true;

NOLA_INLINE void stream_rounded(float* p, F32 v) {
    _mm512_stream_ps(p, v);
}
NOLA_INLINE void stream_rounded(Half* p, F32 v) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
NOLA_INLINE U32 stream_pair_rounded(BFloat16* p, Pair v) {
    const __m512i bits = round_pair(v);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits);
    return bits;
}
NOLA_INLINE void finish_streams() {
    _mm_sfence();
}
