// Saves the floating-point environment of a thread, sets the one that the specification assumes
// (round to nearest even, no flush to zero, no trapped exceptions) and restores the former.
//
// Needed in every worker: an OpenMP thread keeps the control register it was born with, so two
// threads of one region can differ from each other and from the caller.
#pragma once

#include <cstdint>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace nola {

class FpEnvironment {
public:
#if defined(__x86_64__) || defined(__i386__)
    FpEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80U); }
    ~FpEnvironment() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    FpEnvironment() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}) : "memory");
    }
    ~FpEnvironment() { asm volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }
#else
    FpEnvironment() {
        std::feholdexcept(&saved_);
        std::fesetround(FE_TONEAREST);
    }
    ~FpEnvironment() { std::fesetenv(&saved_); }
#endif
    FpEnvironment(const FpEnvironment&) = delete;
    FpEnvironment& operator=(const FpEnvironment&) = delete;

private:
#if defined(__x86_64__) || defined(__i386__)
    unsigned int saved_;
#elif defined(__aarch64__)
    std::uint64_t saved_ = 0;
#else
    std::fenv_t saved_;
#endif
};

}  // namespace nola
