// Philox4x32-10 for many counters at once, with the work that the counter layout makes constant
// done once per stripe instead of once per draw.
// Included by kernels-inl.h inside the namespace of the kernel set.
//
// A counter is (c, d, stream_lo, stream_hi): lanes differ in c, successive calls in the draw d.
// In round 1 only a scalar depends on d; in round 2 so does one product; in round 3 one of the
// two vector products is still free of d. Of twenty vector multiplies fifteen remain per draw.

NOLA_INLINE std::uint32_t multiply_high(std::uint32_t a, std::uint32_t b) {
    return static_cast<std::uint32_t>((std::uint64_t{a} * b) >> 32);
}

inline constexpr std::uint32_t kMultiplier0 = 0xD2511F53U;
inline constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57U;

// What rounds 1 to 3 know of kLanes blocks before the draw is known.
struct BlockPrefix {
    Words round2_word2;  // word 2 after round 2, but for the draw's part
    Words round3_word0;  // word 0 after round 3, but for the product of word 2
    Words round3_word2;  // word 2 after round 3, but for the draw's part
    Words round3_word3;
};

NOLA_INLINE BlockPrefix philox_prefix(const Generator& generator, std::uint32_t first_counter) {
    Words high;
    Words low;
    words_multiply(words_iota(first_counter), kMultiplier0, high, low);
    const Words word2 = words_xor(high, generator.stream_hi ^ generator.key[0][1]);
    BlockPrefix prefix;
    prefix.round2_word2 = words_xor(low, generator.key[1][1]);

    words_multiply(word2, kMultiplier1, high, low);
    const Words word0 = words_xor(high, generator.product1_lo ^ generator.key[1][0]);
    prefix.round3_word0 = words_xor(low, generator.key[2][0]);

    words_multiply(word0, kMultiplier0, high, low);
    prefix.round3_word2 = words_xor(high, generator.key[2][1]);
    prefix.round3_word3 = low;
    return prefix;
}

// The four words of kLanes blocks at one draw.
NOLA_INLINE void philox_words(const Generator& generator, const BlockPrefix& prefix,
                              std::uint32_t draw, U32 (&words)[kStripeWords]) {
    const std::uint32_t word0_round1 = generator.product1_hi ^ draw ^ generator.key[0][0];
    const std::uint32_t draw_high = multiply_high(kMultiplier0, word0_round1);
    const std::uint32_t draw_low = kMultiplier0 * word0_round1;

    Words high1;
    Words low1;
    words_multiply(words_xor(prefix.round2_word2, draw_high), kMultiplier1, high1, low1);
    Words word0 = words_xor(high1, prefix.round3_word0);
    Words word1 = low1;
    Words word2 = words_xor(prefix.round3_word2, draw_low);
    Words word3 = prefix.round3_word3;

#pragma GCC unroll 7
    for (int round = 3; round < 10; ++round) {
        Words high0;
        Words low0;
        words_multiply(word0, kMultiplier0, high0, low0);
        words_multiply(word2, kMultiplier1, high1, low1);
        word0 = words_xor(high1, word1, generator.key[round][0]);
        word1 = low1;
        word2 = words_xor(high0, word3, generator.key[round][1]);
        word3 = low0;
    }
    words[0] = words_join(word0);
    words[1] = words_join(word1);
    words[2] = words_join(word2);
    words[3] = words_join(word3);
}
