// project over whole stripes, the adjoint of expand.
// Included by kernels-inl.h inside the namespace of the kernel set.
//
// Rademacher: lanes are bases. An element's word says which of 32 bases have the sign -1; its
// gradient is added to those, and the caller turns "sum where the bit is set" into the signed sum
// (total - 2 * sum). Each basis thus adds its elements one after the other on every ISA.
// Uniform: lanes are elements, sixteen partial sums per basis on every ISA.

inline constexpr std::size_t kWordVectors = kRademacherPerDraw / kLanes;

template <std::size_t kVector = 0>
NOLA_INLINE void add_where_set(F32 (&sums)[kWordVectors], F32 g, std::uint32_t word) {
    if constexpr (kVector < kWordVectors) {
        sums[kVector] = add_where<static_cast<int>(kVector)>(sums[kVector], g, word);
        add_where_set<kVector + 1>(sums, g, word);
    }
}

// One stripe against kCount draws, whose words lie in `words` (kCount x 64).
template <std::size_t kCount>
NOLA_INLINE void project_stripe(const std::uint32_t* words, const float* grad, float* sums) {
    F32 partial[kCount][kWordVectors];
    for (std::size_t q = 0; q < kCount; ++q) {
        for (std::size_t v = 0; v < kWordVectors; ++v) {
            partial[q][v] = load(sums + q * kRademacherPerDraw + v * kLanes);
        }
    }
    for (std::size_t e = 0; e < kStripe; ++e) {
        const F32 g = broadcast(grad[e]);
        for (std::size_t q = 0; q < kCount; ++q) {
            add_where_set(partial[q], g, words[q * kStripe + e]);
        }
    }
    for (std::size_t q = 0; q < kCount; ++q) {
        for (std::size_t v = 0; v < kWordVectors; ++v) {
            store(sums + q * kRademacherPerDraw + v * kLanes, partial[q][v]);
        }
    }
}

void project_rademacher(const Generator& generator, StripeRange range, const float* grad,
                        std::uint32_t draws, float* sums) {
    constexpr std::size_t kBlocks = kStripeLanes / kLanes;
    alignas(64) std::uint32_t words[kProjectDraws * kStripe];
    for (std::uint32_t s = 0; s < range.count; ++s, grad += kStripe) {
        BlockPrefix prefix[kBlocks];
        for (std::size_t b = 0; b < kBlocks; ++b) {
            prefix[b] = philox_prefix(
                generator,
                static_cast<std::uint32_t>((range.first + s) * kStripeLanes + b * kLanes));
        }
        const auto generate = [&](std::uint32_t draw, std::uint32_t* stripe) NOLA_INLINE_LAMBDA {
            for (std::size_t b = 0; b < kBlocks; ++b) {
                U32 block[kStripeWords];
                philox_words(generator, prefix[b], draw, block);
                for (std::size_t w = 0; w < kStripeWords; ++w) {
                    store_u32(stripe + w * kStripeLanes + b * kLanes, block[w]);
                }
            }
        };
        std::uint32_t draw = 0;
        for (; draw + kProjectDraws <= draws; draw += kProjectDraws) {
            for (std::uint32_t q = 0; q < kProjectDraws; ++q) {
                generate(draw + q, words + q * kStripe);
            }
            project_stripe<kProjectDraws>(words, grad, sums + draw * kRademacherPerDraw);
        }
        for (; draw < draws; ++draw) {
            generate(draw, words);
            project_stripe<1>(words, grad, sums + draw * kRademacherPerDraw);
        }
    }
}

void project_uniform(const Generator& generator, StripeRange range, const float* grad,
                     std::uint32_t draws, float* sums) {
    for (std::uint32_t s = 0; s < range.count; ++s, grad += kStripe) {
        for (std::size_t lane = 0; lane < kStripeLanes; lane += kLanes) {
            const auto counter =
                static_cast<std::uint32_t>((range.first + s) * kStripeLanes + lane);
            const BlockPrefix prefix = philox_prefix(generator, counter);
            F32 g[kStripeWords];
            for (std::size_t w = 0; w < kStripeWords; ++w) {
                g[w] = load(grad + w * kStripeLanes + lane);
            }
            for (std::uint32_t draw = 0; draw < draws; ++draw) {
                U32 words[kStripeWords];
                philox_words(generator, prefix, draw, words);
                float* first = sums + std::size_t{draw} * 2 * kStripeLanes + lane;
                float* second = first + kStripeLanes;
                F32 first_sum = load(first);
                F32 second_sum = load(second);
                for (std::size_t w = 0; w < kStripeWords; ++w) {
                    first_sum = fma(g[w], uniform_low(words[w]), first_sum);
                    second_sum = fma(g[w], uniform_high(words[w]), second_sum);
                }
                store(first, first_sum);
                store(second, second_sum);
            }
        }
    }
}
