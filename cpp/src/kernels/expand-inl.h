// expand over whole stripes: generate, look up, accumulate in registers, store once.
// Included by kernels-inl.h inside the namespace of the kernel set.

// Adds the eight sign groups of one draw, in order, to the sums of each word.
template <int kGroup = 0>
NOLA_INLINE void add_sign_groups(const float* tables, const U32 (&words)[kStripeWords],
                                 F32 (&sums)[kStripeWords]) {
    if constexpr (kGroup < 8) {
        const SignTable table = load_sign_table(tables + kGroup * kSignTable);
        for (std::size_t w = 0; w < kStripeWords; ++w) {
            sums[w] = add(sums[w], signed_sum<4 * kGroup>(table, words[w]));
        }
        add_sign_groups<kGroup + 1>(tables, words, sums);
    }
}

// Calls accumulate(draw, words, sums) for every draw of every run of kLanes blocks in the range
// and stores the sums.
template <class Accumulate>
NOLA_INLINE void expand_range(const Generator& generator, StripeRange range, std::uint32_t draws,
                              float* out, Accumulate accumulate) {
    for (std::uint32_t s = 0; s < range.count; ++s, out += kStripe) {
        for (std::size_t lane = 0; lane < kStripeLanes; lane += kLanes) {
            const auto counter =
                static_cast<std::uint32_t>((range.first + s) * kStripeLanes + lane);
            const BlockPrefix prefix = philox_prefix(generator, counter);
            F32 sums[kStripeWords] = {zero(), zero(), zero(), zero()};
            for (std::uint32_t draw = 0; draw < draws; ++draw) {
                U32 words[kStripeWords];
                philox_words(generator, prefix, draw, words);
                accumulate(draw, words, sums);
            }
            for (std::size_t w = 0; w < kStripeWords; ++w) {
                store(out + w * kStripeLanes + lane, sums[w]);
            }
        }
    }
}

void expand_rademacher(const Generator& generator, StripeRange range, const float* tables,
                       std::uint32_t draws, float* out) {
    expand_range(generator, range, draws, out,
                 [tables](std::uint32_t draw, const U32(&words)[kStripeWords],
                          F32(&sums)[kStripeWords]) NOLA_INLINE_LAMBDA {
                     add_sign_groups(tables + std::size_t{draw} * 8 * kSignTable, words, sums);
                 });
}

void expand_uniform(const Generator& generator, StripeRange range, const float* coefficients,
                    std::uint32_t draws, float* out) {
    expand_range(generator, range, draws, out,
                 [coefficients](std::uint32_t draw, const U32(&words)[kStripeWords],
                                F32(&sums)[kStripeWords]) NOLA_INLINE_LAMBDA {
                     const F32 first = broadcast(coefficients[std::size_t{draw} * 2]);
                     const F32 second = broadcast(coefficients[std::size_t{draw} * 2 + 1]);
                     for (std::size_t w = 0; w < kStripeWords; ++w) {
                         sums[w] = fma(first, uniform_low(words[w]), sums[w]);
                         sums[w] = fma(second, uniform_high(words[w]), sums[w]);
                     }
                 });
}
