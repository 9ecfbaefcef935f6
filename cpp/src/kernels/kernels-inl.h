// The kernels, written once and compiled once per instruction set.
//
// A kernel set's source file defines NOLA_ISA (its namespace) and NOLA_SIMD_HEADER (its vector
// operations) and includes this file. Everything below lives in that namespace and has internal
// linkage, and no standard template is used: a weak symbol compiled with AVX-512 flags could
// otherwise be linked into code that runs anywhere (tests/packaging/test_cpp_library.py).

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

#define NOLA_INLINE static inline __attribute__((always_inline))
#define NOLA_NOINLINE static __attribute__((noinline))
#define NOLA_INLINE_LAMBDA __attribute__((always_inline))

namespace nola::kernels::NOLA_ISA {
namespace {

struct Half {
    std::uint16_t bits;
};
struct BFloat16 {
    std::uint16_t bits;
};

// clang-format off: each of these needs the ones before it
#include NOLA_SIMD_HEADER
#include "kernels/philox-inl.h"
#include "kernels/expand-inl.h"
#include "kernels/project-inl.h"
#include "kernels/merge-inl.h"
#include "kernels/quantize-inl.h"
// clang-format on

}  // namespace

extern const KernelSet kKernels;
// clang-format off: in the groups of the table
const KernelSet kKernels = {
    expand_rademacher, expand_uniform,
    project_rademacher, project_uniform,
    merge_f32, merge_f16, merge_bf16,
    kPanel, kTileRows, kPairedBFloat16 ? 2 * kLanes : 0,
    {dequantize<Q4_0>, dequantize<Q4_1>, dequantize<Q5_0>, dequantize<Q5_1>, dequantize<Q8_0>},
    {quantize<Q4_0>, quantize<Q4_1>, quantize<Q5_0>, quantize<Q5_1>, quantize<Q8_0>},
    {quantize_amplified<Q4_0>, quantize_amplified<Q4_1>, quantize_amplified<Q5_0>,
     quantize_amplified<Q5_1>, quantize_amplified<Q8_0>},
    change_sums,
};
// clang-format on

}  // namespace nola::kernels::NOLA_ISA
