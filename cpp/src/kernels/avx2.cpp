#include <immintrin.h>

#define NOLA_ISA avx2
#define NOLA_SIMD_HEADER "kernels/simd/avx2-inl.h"
#include "kernels/kernels-inl.h"
