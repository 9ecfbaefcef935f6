#define NOLA_ISA portable
#define NOLA_SIMD_HEADER "kernels/simd/portable-inl.h"
#include "kernels/kernels-inl.h"
