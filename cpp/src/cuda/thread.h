// What a thread of a CUDA device can do, and how a processor does the same.
//
// The bodies of the kernels are written against this file, so that they run thread by thread on
// the host as well (cpp/tests/cuda): every bit is tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nola/merge.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define NOLA_BODY __device__ __forceinline__
#define NOLA_UNROLL _Pragma("unroll")
#define NOLA_UNROLL_TWO _Pragma("unroll 2")
#define NOLA_KEEP_ROLLED _Pragma("unroll 1")
#else
#include <cmath>
#include <cstring>
#define NOLA_BODY inline
#define NOLA_UNROLL
#define NOLA_UNROLL_TWO
#define NOLA_KEEP_ROLLED
#endif

namespace nola::cuda {

// a * b + c with one rounding. Everywhere else a product is rounded before it is added: nvcc is
// told not to contract (cmake/NolaCuda.cmake), and the machine code is checked for it.
NOLA_BODY float fused_multiply_add(float a, float b, float c) {
#ifdef __CUDACC__
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
}

NOLA_BODY float float_of(std::uint32_t bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

NOLA_BODY std::uint32_t bits_of(float value) {
#ifdef __CUDACC__
    return __float_as_uint(value);
#else
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

// The bytes of (high, low) that the selector's digits name, 0 the lowest of `low`.
NOLA_BODY std::uint32_t pick_bytes(std::uint32_t low, std::uint32_t high, std::uint32_t selector) {
#ifdef __CUDACC__
    return __byte_perm(low, high, selector);
#else
    const std::uint64_t bytes = std::uint64_t{high} << 32 | low;
    std::uint32_t picked = 0;
    for (unsigned i = 0; i < 4; ++i) {
        const std::uint32_t which = (selector >> (4 * i)) & 7U;
        picked |= static_cast<std::uint32_t>((bytes >> (8 * which)) & 0xFFU) << (8 * i);
    }
    return picked;
#endif
}

NOLA_BODY void set_flag(int* flag) {
#ifdef __CUDACC__
    atomicOr(flag, 1);
#else
    *flag |= 1;
#endif
}

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

NOLA_BODY float widen(float value) {
    return value;
}
NOLA_BODY float widen(BFloat16 value) {
    return float_of(std::uint32_t{value.bits} << 16);
}
NOLA_BODY float widen(Half value) {
#ifdef __CUDACC__
    return __half2float(__ushort_as_half(value.bits));
#else
    // A half's bits stand 13 places up in a float, 112 exponents down: multiplying by 2^112 is
    // exact, for subnormals too. Infinity and NaN are left to be large.
    const std::uint32_t magnitude = (value.bits & 0x7FFFU) << 13;
    const std::uint32_t sign = (value.bits & 0x8000U) << 16;
    if (magnitude >= 0x0F800000U) {
        return float_of(sign | 0x7F800000U | (magnitude & 0x007FFFFFU));
    }
    return float_of(sign | bits_of(float_of(magnitude) * float_of(0x77800000U)));
#endif
}

// Round to nearest, ties to even.
template <class T>
NOLA_BODY T rounded(float value);
template <>
NOLA_BODY float rounded<float>(float value) {
    return value;
}
template <>
NOLA_BODY BFloat16 rounded<BFloat16>(float value) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 800
    return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    const std::uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
        return {0x7FFFU};
    }
    return {static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
#endif
}
template <>
NOLA_BODY Half rounded<Half>(float value) {
#ifdef __CUDACC__
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const std::uint32_t bits = bits_of(value);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
    if (magnitude > 0x7F800000U) {
        return {0x7FFFU};
    }
    if (magnitude >= 0x477FF000U) {  // 65520 rounds to infinity
        return {static_cast<std::uint16_t>(sign | 0x7C00U)};
    }
    if (magnitude < 0x38800000U) {  // subnormal: the sum with 1/2 rounds at the right place
        const float shifted = float_of(magnitude) + 0.5F;
        return {static_cast<std::uint16_t>(sign | (bits_of(shifted) - bits_of(0.5F)))};
    }
    const std::uint32_t even = magnitude + 0xFFFU + ((magnitude >> 13) & 1U);
    return {static_cast<std::uint16_t>(sign | ((even - 0x38000000U) >> 13))};
#endif
}

// Four elements of a row, which memory moves at once.
template <class T>
struct alignas(4 * sizeof(T)) Four {
    T value[4];
};

// One load and one store of all four, for what is used once. Said with intrinsics: given an
// assignment the compiler may move an element at a time, and did, and it does not know that an
// address out of a table is one of global memory.
NOLA_BODY Four<float> load_four(const float* from) {
#ifdef __CUDACC__
    const float4 four = __ldcs(reinterpret_cast<const float4*>(from));
    return {{four.x, four.y, four.z, four.w}};
#else
    return *reinterpret_cast<const Four<float>*>(from);
#endif
}
template <class T>
NOLA_BODY Four<T> load_four(const T* from) {
    static_assert(sizeof(T) == 2);
#ifdef __CUDACC__
    const ushort4 four = __ldcs(reinterpret_cast<const ushort4*>(from));
    return {{{four.x}, {four.y}, {four.z}, {four.w}}};
#else
    return *reinterpret_cast<const Four<T>*>(from);
#endif
}
NOLA_BODY void store_four(float* to, const Four<float>& four) {
#ifdef __CUDACC__
    __stcs(reinterpret_cast<float4*>(to),
           make_float4(four.value[0], four.value[1], four.value[2], four.value[3]));
#else
    *reinterpret_cast<Four<float>*>(to) = four;
#endif
}
template <class T>
NOLA_BODY void store_four(T* to, const Four<T>& four) {
    static_assert(sizeof(T) == 2);
#ifdef __CUDACC__
    __stcs(reinterpret_cast<ushort4*>(to), make_ushort4(four.value[0].bits, four.value[1].bits,
                                                        four.value[2].bits, four.value[3].bits));
#else
    *reinterpret_cast<Four<T>*>(to) = four;
#endif
}

// What no thread of a launch writes.
NOLA_BODY float load_constant(const float* from) {
#ifdef __CUDACC__
    return __ldg(from);
#else
    return *from;
#endif
}

// An element at an address of a type that is known at run time, the same for all threads.
NOLA_BODY float load_element(ElementType type, const void* from, std::uint64_t index) {
    switch (type) {
        case ElementType::kFloat16:
            return widen(static_cast<const Half*>(from)[index]);
        case ElementType::kBFloat16:
            return widen(static_cast<const BFloat16*>(from)[index]);
        case ElementType::kFloat32:
            break;
    }
    return static_cast<const float*>(from)[index];
}
NOLA_BODY void store_element(ElementType type, void* to, std::uint64_t index, float value) {
    switch (type) {
        case ElementType::kFloat16:
            static_cast<Half*>(to)[index] = rounded<Half>(value);
            return;
        case ElementType::kBFloat16:
            static_cast<BFloat16*>(to)[index] = rounded<BFloat16>(value);
            return;
        case ElementType::kFloat32:
            break;
    }
    static_cast<float*>(to)[index] = value;
}

}  // namespace nola::cuda
