// One half-precision number on x86 processors with F16C, which AVX2 and AVX-512 kernels require.
// Included by their headers inside the namespace of the kernel set.

NOLA_INLINE float from_half(Half half) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half.bits)));
}
NOLA_INLINE Half to_half(float value) {
    const __m128i half =
        _mm_cvtps_ph(_mm_set_ss(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return {static_cast<std::uint16_t>(_mm_cvtsi128_si32(half))};
}
