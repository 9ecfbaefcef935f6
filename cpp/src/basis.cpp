#include "nola/basis.h"

#include <cmath>

namespace nola {

std::uint64_t fnv1a(std::string_view bytes, std::uint64_t hash) {
    for (const char byte : bytes) {
        hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3ULL;
    }
    return hash;
}

std::uint64_t stream_id(std::string_view module, Factor factor) {
    const char ending[] = {':', static_cast<char>(factor)};
    return fnv1a({ending, sizeof ending}, fnv1a(module));
}

float gain(Basis basis, std::size_t num_basis) {
    const double sigma = basis == Basis::kRademacher ? 1.0 : std::sqrt(3.0 / 4294967295.0);
    return static_cast<float>(sigma / std::sqrt(static_cast<double>(num_basis)));
}

}  // namespace nola
