// Saves the floating-point environment of a thread, sets the one that the specification assumes
// (round to nearest even, no flush to zero, no trapped exceptions) and restores the former.
//
// Needed in every worker: an OpenMP thread keeps the control register it was born with, so two
// threads of one region can differ from each other and from the caller.
//
// The standard library cannot do this: flushing to zero is not part of what it calls the
// environment. So every processor's control register is named here, and one that is not is refused.
#pragma once

// Before anything else is included, which would fail with less to say.
// clang-format off: one message, in two lines
#if __FLT_EVAL_METHOD__ != 0
#error "nola-edge: floats are computed in more bits than the specification rounds to; on 32-bit \
x86 compile with -msse2 -mfpmath=sse (in CXXFLAGS), for processors with SSE2"
#endif
// clang-format on

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace nola {

#if defined(__x86_64__) || defined(__i386__)
using FpControl = unsigned int;
inline constexpr FpControl kSpecifiedControl = 0x1F80U;  // all exceptions masked
inline FpControl fp_control() {
    return _mm_getcsr();
}
inline void set_fp_control(FpControl value) {
    _mm_setcsr(value);
}
#elif defined(__aarch64__)
using FpControl = unsigned long;
inline constexpr FpControl kSpecifiedControl = 0;
inline FpControl fp_control() {
    FpControl value = 0;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
inline void set_fp_control(FpControl value) {
    asm volatile("msr fpcr, %0" : : "r"(value) : "memory");
}
#elif defined(__arm__) && defined(__SOFTFP__)
// The compiler's own arithmetic, which has no such register and never flushes.
using FpControl = unsigned int;
inline constexpr FpControl kSpecifiedControl = 0;
inline FpControl fp_control() {
    return 0;
}
inline void set_fp_control(FpControl) {}
#elif defined(__arm__)
using FpControl = unsigned int;
inline constexpr FpControl kSpecifiedControl = 0;
inline FpControl fp_control() {
    FpControl value = 0;
    asm volatile("vmrs %0, fpscr" : "=r"(value));
    return value;
}
inline void set_fp_control(FpControl value) {
    asm volatile("vmsr fpscr, %0" : : "r"(value) : "memory");
}
#else
#error \
    "nola-edge: cpp/src/fp_environment.h does not know how this processor is told to keep \
subnormal numbers, without which the bits are not those of other machines; it knows x86-64, x86 \
with SSE2, AArch64 and 32-bit ARM: add the register there and run the C++ tests"
#endif

class FpEnvironment {
public:
    FpEnvironment() : saved_(fp_control()) { set_fp_control(kSpecifiedControl); }
    ~FpEnvironment() { set_fp_control(saved_); }
    FpEnvironment(const FpEnvironment&) = delete;
    FpEnvironment& operator=(const FpEnvironment&) = delete;

private:
    FpControl saved_;
};

}  // namespace nola
