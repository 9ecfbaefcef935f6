// An obvious scalar reading of docs/basis-v1.md, and what the tests share.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "nola/basis.h"
#include "nola/isa.h"
#include "nola/philox.h"

namespace nola::test {

// Runs body once for every kernel set of this machine, by forced choice.
template <class Body>
void for_each_isa(const Body& body) {
    const Isa before = active_isa();
    for (const Isa isa : supported_isas()) {
        force_isa(isa);
        body();
    }
    force_isa(before);
}

inline std::uint32_t word(const Matrix& matrix, std::uint64_t element, std::uint32_t draw) {
    const auto counter = static_cast<std::uint32_t>(element / 64 * 16 + element % 16);
    const auto lo = static_cast<std::uint32_t>(matrix.stream);
    const auto hi = static_cast<std::uint32_t>(matrix.stream >> 32);
    const PhiloxKey key = {static_cast<std::uint32_t>(matrix.seed),
                           static_cast<std::uint32_t>(matrix.seed >> 32)};
    return philox4x32_10({counter, draw, lo, hi}, key)[element % 64 / 16];
}

inline float basis_value(const Matrix& matrix, std::size_t i, std::uint64_t element) {
    if (matrix.basis == Basis::kRademacher) {
        const auto draw = static_cast<std::uint32_t>(i / 32);
        return ((word(matrix, element, draw) >> (i % 32)) & 1U) != 0 ? -1.0F : 1.0F;
    }
    const std::uint32_t w = word(matrix, element, static_cast<std::uint32_t>(i / 2));
    const std::uint32_t half = i % 2 == 0 ? w & 0xFFFFU : w >> 16;
    return static_cast<float>(2 * static_cast<int>(half) - 65535);
}

inline float expand_element(const Matrix& matrix, const std::vector<float>& alpha,
                            std::uint64_t element) {
    const float g = gain(matrix.basis, alpha.size());
    float acc = 0.0F;
    if (matrix.basis == Basis::kUniform) {
        for (std::size_t i = 0; i < alpha.size(); ++i) {
            acc = std::fma(alpha[i] * g, basis_value(matrix, i, element), acc);
        }
        return acc;
    }
    const auto term = [&](std::size_t i) {
        return i < alpha.size() ? alpha[i] * g * basis_value(matrix, i, element) : 0.0F;
    };
    for (std::size_t i = 0; i < alpha.size(); i += 4) {
        acc = acc + ((term(i) + term(i + 1)) + (term(i + 2) + term(i + 3)));
    }
    return acc;
}

inline std::vector<float> random_floats(std::size_t count, std::uint32_t seed, float scale = 1.0F) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) {
        value = scale * normal(engine);
    }
    return values;
}

}  // namespace nola::test
