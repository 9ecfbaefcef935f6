#include <arm_neon.h>

#define NOLA_ISA neon
#define NOLA_SIMD_HEADER "kernels/simd/neon-inl.h"
#include "kernels/kernels-inl.h"
