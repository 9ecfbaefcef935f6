// Which instruction set the kernels run on.
//
// Every kernel set gives the same bits, so the choice is one of speed alone. The best set that the
// processor supports is taken at first use; the environment variable NOLA_EDGE_ISA
// (portable, avx2, avx512, neon) or force_isa() overrides it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace nola {

enum class Isa : std::uint8_t { kPortable, kNeon, kAvx2, kAvx512 };

std::string_view isa_name(Isa isa);
// Throws std::invalid_argument for a name that is none of the four.
Isa isa_from_name(std::string_view name);

// The sets built into this library / those this processor can also run, slowest first.
std::vector<Isa> compiled_isas();
std::vector<Isa> supported_isas();

// The set in use. Throws std::invalid_argument when NOLA_EDGE_ISA names an unknown set or one
// that this build or this processor lacks.
Isa active_isa();
// Takes effect for calls that start afterwards, in all threads. Throws like active_isa().
void force_isa(Isa isa);

}  // namespace nola
