#include "nola/basis.h"

#include <cmath>

namespace nola {

std::uint64_t stream_id(std::string_view module, Factor factor) {
    std::uint64_t hash = 0xCBF29CE484222325ULL;
    const auto mix = [&hash](char byte) {
        hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3ULL;
    };
    for (const char byte : module) {
        mix(byte);
    }
    mix(':');
    mix(static_cast<char>(factor));
    return hash;
}

float gain(Basis basis, std::size_t num_basis) {
    const double sigma = basis == Basis::kRademacher ? 1.0 : std::sqrt(3.0 / 4294967295.0);
    return static_cast<float>(sigma / std::sqrt(static_cast<double>(num_basis)));
}

}  // namespace nola
