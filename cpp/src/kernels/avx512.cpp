#include <immintrin.h>

#define NOLA_ISA avx512
#define NOLA_SIMD_HEADER "kernels/simd/avx512-inl.h"
#include "kernels/kernels-inl.h"
