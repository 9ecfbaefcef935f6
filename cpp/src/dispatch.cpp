// Chooses the kernel set at first use. Built without instruction set flags, so that the code that
// asks what the processor can do never needs what it is asking for.
#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "nola/isa.h"

#ifdef NOLA_HAVE_AVX2
#include <cpuid.h>
#endif

// A macro NOLA_HAVE_<ISA> is the build system's promise that the kernel set is linked in.
namespace nola::kernels {
namespace portable {
extern const KernelSet kKernels;
}
#ifdef NOLA_HAVE_NEON
namespace neon {
extern const KernelSet kKernels;
}
#endif
#ifdef NOLA_HAVE_AVX2
namespace avx2 {
extern const KernelSet kKernels;
}
#endif
#ifdef NOLA_HAVE_AVX512
namespace avx512 {
extern const KernelSet kKernels;
}
#endif
}  // namespace nola::kernels

namespace nola {
namespace {

struct Candidate {
    Isa isa;
    const kernels::KernelSet* kernels;
    bool (*supported)();
};

bool always() {
    return true;
}

#ifdef NOLA_HAVE_AVX2
// Asked of the processor itself: not every compiler's run-time library answers
// __builtin_cpu_supports (that of zig says no), and Clang before 15 does not know "f16c".
struct Features {
    unsigned basic = 0;     // leaf 1, ecx
    unsigned extended = 0;  // leaf 7, ebx
    unsigned kept = 0;      // registers that the operating system keeps, of XCR0
};

Features features() {
    Features found;
    unsigned eax = 0;
    unsigned ebx = 0;
    unsigned ecx = 0;
    unsigned edx = 0;
    if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_OSXSAVE) == 0) {
        return found;
    }
    found.basic = ecx;
    if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
        found.extended = ebx;
    }
    unsigned high = 0;
    __asm__("xgetbv" : "=a"(found.kept), "=d"(high) : "c"(0));
    return found;
}

bool has_all(unsigned found, unsigned wanted) {
    return (found & wanted) == wanted;
}

bool has_avx2() {
    constexpr unsigned kWideRegisters = 0x06;
    const Features found = features();
    return has_all(found.basic, bit_AVX | bit_FMA | bit_F16C) &&
           has_all(found.extended, bit_AVX2) && has_all(found.kept, kWideRegisters);
}
#endif
#ifdef NOLA_HAVE_AVX512
bool has_avx512() {
    constexpr unsigned kWidestRegisters = 0xE6;
    const Features found = features();
    return has_avx2() &&
           has_all(found.extended, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
           has_all(found.kept, kWidestRegisters);
}
#endif

// Slowest first.
constexpr Candidate kCandidates[] = {
    {Isa::kPortable, &kernels::portable::kKernels, always},
#ifdef NOLA_HAVE_NEON
    {Isa::kNeon, &kernels::neon::kKernels, always},
#endif
#ifdef NOLA_HAVE_AVX2
    {Isa::kAvx2, &kernels::avx2::kKernels, has_avx2},
#endif
#ifdef NOLA_HAVE_AVX512
    {Isa::kAvx512, &kernels::avx512::kKernels, has_avx512},
#endif
};

constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kNeon, Isa::kAvx2, Isa::kAvx512};

std::atomic<const Candidate*> active{nullptr};

std::string joined_names(const std::vector<Isa>& isas) {
    std::string names;
    for (const Isa isa : isas) {
        names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    return names;
}

const Candidate& supported_candidate(Isa isa) {
    for (const Candidate& candidate : kCandidates) {
        if (candidate.isa == isa && candidate.supported()) {
            return candidate;
        }
    }
    throw std::invalid_argument(
        "instruction set '" + std::string(isa_name(isa)) +
        "' is not available here; available: " + joined_names(supported_isas()));
}

const Candidate& best_candidate() {
    if (const char* forced = std::getenv("NOLA_EDGE_ISA"); forced != nullptr && *forced != '\0') {
        try {
            return supported_candidate(isa_from_name(forced));
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument(std::string("NOLA_EDGE_ISA: ") + error.what());
        }
    }
    return supported_candidate(supported_isas().back());
}

// Two threads that meet here compute the same candidate, so a race is harmless.
const Candidate& active_candidate() {
    const Candidate* candidate = active.load(std::memory_order_acquire);
    if (candidate == nullptr) {
        candidate = &best_candidate();
        active.store(candidate, std::memory_order_release);
    }
    return *candidate;
}

}  // namespace

std::string_view isa_name(Isa isa) {
    switch (isa) {
        case Isa::kPortable:
            return "portable";
        case Isa::kNeon:
            return "neon";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kAvx512:
            return "avx512";
    }
    return "unknown";
}

Isa isa_from_name(std::string_view name) {
    for (const Isa isa : kAllIsas) {
        if (isa_name(isa) == name) {
            return isa;
        }
    }
    throw std::invalid_argument("unknown instruction set '" + std::string(name) +
                                "'; known: portable, neon, avx2, avx512");
}

std::vector<Isa> compiled_isas() {
    std::vector<Isa> isas;
    for (const Candidate& candidate : kCandidates) {
        isas.push_back(candidate.isa);
    }
    return isas;
}

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
    for (const Candidate& candidate : kCandidates) {
        if (candidate.supported()) {
            isas.push_back(candidate.isa);
        }
    }
    return isas;
}

Isa active_isa() {
    return active_candidate().isa;
}

void force_isa(Isa isa) {
    active.store(&supported_candidate(isa), std::memory_order_release);
}

const kernels::KernelSet& active_kernels() {
    return *active_candidate().kernels;
}

}  // namespace nola
