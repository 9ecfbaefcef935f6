// Philox4x32-10 for one thread, with the work that the counter layout makes constant done once per
// counter instead of once per draw (the derivation stands in kernels/philox-inl.h).
#pragma once

#include "cuda/thread.h"
#include "cuda/tiles.h"
#include "nola/cuda/jobs.h"
#include "nola/philox.h"

namespace nola::cuda {

// Of a whole launch: parameters of a kernel, which instructions read at no cost.
struct RoundKeys {
    std::uint32_t key[kPhiloxRounds][2];
};

inline RoundKeys make_round_keys(std::uint64_t seed) {
    RoundKeys keys{};
    std::uint32_t key[2] = {static_cast<std::uint32_t>(seed),
                            static_cast<std::uint32_t>(seed >> 32)};
    for (auto& round : keys.key) {
        round[0] = key[0];
        round[1] = key[1];
        key[0] += kPhiloxWeyl0;
        key[1] += kPhiloxWeyl1;
    }
    return keys;
}

struct Product {
    std::uint32_t high;
    std::uint32_t low;
};
NOLA_BODY Product multiply(std::uint32_t a, std::uint32_t b) {
    const std::uint64_t product = std::uint64_t{a} * b;
    return {static_cast<std::uint32_t>(product >> 32), static_cast<std::uint32_t>(product)};
}

// What rounds 1 to 3 know of a counter before the draw is known.
struct CounterPrefix {
    std::uint32_t round2_word2;
    std::uint32_t round3_word0;
    std::uint32_t round3_word2;
    std::uint32_t round3_word3;
};

NOLA_BODY CounterPrefix philox_prefix(const RoundKeys& keys, const StreamWords& stream,
                                      std::uint32_t counter) {
    const Product round1 = multiply(counter, kPhiloxMultiplier0);
    const std::uint32_t word2 = round1.high ^ stream.high ^ keys.key[0][1];
    const Product round2 = multiply(word2, kPhiloxMultiplier1);
    const std::uint32_t word0 = round2.high ^ stream.product_low ^ keys.key[1][0];
    const Product round3 = multiply(word0, kPhiloxMultiplier0);
    return {round1.low ^ keys.key[1][1], round2.low ^ keys.key[2][0], round3.high ^ keys.key[2][1],
            round3.low};
}

NOLA_BODY void philox_words(const RoundKeys& keys, const StreamWords& stream,
                            const CounterPrefix& prefix, std::uint32_t draw,
                            std::uint32_t (&words)[kStripeWords]) {
    const Product drawn = multiply(stream.product_high ^ draw ^ keys.key[0][0], kPhiloxMultiplier0);
    const Product round3 = multiply(prefix.round2_word2 ^ drawn.high, kPhiloxMultiplier1);
    words[0] = round3.high ^ prefix.round3_word0;
    words[1] = round3.low;
    words[2] = prefix.round3_word2 ^ drawn.low;
    words[3] = prefix.round3_word3;
    NOLA_UNROLL
    for (int round = 3; round < kPhiloxRounds; ++round) {
        const Product product0 = multiply(words[0], kPhiloxMultiplier0);
        const Product product1 = multiply(words[2], kPhiloxMultiplier1);
        words[0] = product1.high ^ words[1] ^ keys.key[round][0];
        words[1] = product1.low;
        words[2] = product0.high ^ words[3] ^ keys.key[round][1];
        words[3] = product0.low;
    }
}

// 2u - 65535 for the low or the high half u of a word: u becomes the mantissa of 2^23 + u. Each
// operation is exact, so the fused one rounds nothing.
NOLA_BODY float uniform_value(std::uint32_t mantissa) {
    return fused_multiply_add(2.0F, float_of(mantissa) - 8388608.0F, -65535.0F);
}
NOLA_BODY float uniform_low(std::uint32_t word) {
    return uniform_value(pick_bytes(word, 0x4B00U, 0x5410U));
}
NOLA_BODY float uniform_high(std::uint32_t word) {
    return uniform_value(pick_bytes(word, 0x4B00U, 0x5432U));
}

}  // namespace nola::cuda
