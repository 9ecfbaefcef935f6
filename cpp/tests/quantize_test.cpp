#include "nola/quantize.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "reference.h"

namespace {

using nola::BlockType;
using nola::kBlockElements;

constexpr BlockType kTypes[] = {BlockType::kQ4_0, BlockType::kQ4_1, BlockType::kQ5_0,
                                BlockType::kQ5_1, BlockType::kQ8_0};

std::vector<std::uint8_t> quantized(BlockType type, const std::vector<float>& values,
                                    int threads = 1) {
    const std::size_t count = values.size() / kBlockElements;
    std::vector<std::uint8_t> blocks(count * nola::block_bytes(type));
    nola::quantize(type, values.data(), count, blocks.data(), threads);
    return blocks;
}

std::vector<float> dequantized(BlockType type, const std::vector<std::uint8_t>& blocks,
                               int threads = 1) {
    const std::size_t count = blocks.size() / nola::block_bytes(type);
    std::vector<float> values(count * kBlockElements);
    nola::dequantize(type, blocks.data(), count, values.data(), threads);
    return values;
}

float scale_of(const std::uint8_t* block) {
    const unsigned half = block[0] + 256U * block[1];
    return std::ldexp(static_cast<float>((half & 1023U) + 1024U),
                      static_cast<int>((half >> 10) & 31U) - 25);
}

}  // namespace

TEST_CASE("quantize: codes and scale of a block that is known") {
    nola::test::for_each_isa([] {
        std::vector<float> values(kBlockElements);
        for (std::size_t i = 0; i < kBlockElements; ++i) {
            values[i] = static_cast<float>(i) * 0.25F;
        }
        // d = (7.75 - 0) / 31 = 0.25, so that every code is its element's number.
        const auto q5_1 = quantized(BlockType::kQ5_1, values);
        CHECK(q5_1[0] + 256 * q5_1[1] == 0x3400);
        CHECK(q5_1[2] + 256 * q5_1[3] == 0);
        for (std::size_t i = 0; i < 4; ++i) {
            CHECK(q5_1[4 + i] == (i < 2 ? 0x00 : 0xFF));
        }
        for (std::size_t i = 0; i < 16; ++i) {
            CHECK(q5_1[8 + i] == (i | i << 4));
        }
        CHECK(dequantized(BlockType::kQ5_1, q5_1) == values);
        // The largest magnitude has the code 0, which has more room below it than above.
        values.assign(kBlockElements, 0.0F);
        values[3] = 8.0F;
        values[20] = -2.0F;
        const auto q4_0 = quantized(BlockType::kQ4_0, values);
        CHECK(q4_0[0] + 256 * q4_0[1] == 0xBC00);
        CHECK(q4_0[2] == 0x88);
        CHECK(q4_0[2 + 3] == 0x80);
        CHECK(q4_0[2 + 4] == 0xA8);
        CHECK(dequantized(BlockType::kQ4_0, q4_0) == values);
    });
}

TEST_CASE("quantize: half a step off at the most, the same for any number of threads and ISA") {
    for (const BlockType type : kTypes) {
        const auto values = nola::test::random_floats(5000 * kBlockElements, 1);
        const auto expected = quantized(type, values);
        const auto back = dequantized(type, expected);
        for (std::size_t i = 0; i < values.size(); ++i) {
            const std::size_t block = i / kBlockElements;
            const float step = scale_of(&expected[block * nola::block_bytes(type)]);
            // A full step where a type without a minimum has no code for the opposite value.
            REQUIRE(std::fabs(back[i] - values[i]) <= 1.01F * step);
        }
        nola::test::for_each_isa([&] {
            for (const int threads : {1, 2, 7}) {
                CHECK(quantized(type, values, threads) == expected);
                CHECK(dequantized(type, expected, threads) == back);
            }
        });
    }
}

TEST_CASE("quantize: what is not finite comes back as NaN, in its block alone") {
    nola::test::for_each_isa([] {
        for (const BlockType type : kTypes) {
            for (const float value : {std::numeric_limits<float>::infinity(),
                                      std::numeric_limits<float>::quiet_NaN()}) {
                auto values = nola::test::random_floats(3 * kBlockElements, 2);
                values[40] = value;
                const auto back = dequantized(type, quantized(type, values));
                for (std::size_t i = 0; i < back.size(); ++i) {
                    CHECK(std::isnan(back[i]) == (i / kBlockElements == 1));
                }
            }
        }
    });
}

TEST_CASE("quantize_amplified: a change too small for a step is kept, the same on every ISA") {
    for (const BlockType type : kTypes) {
        const auto base =
            dequantized(type, quantized(type, nola::test::random_floats(500 * kBlockElements, 3)));
        const float step = type == BlockType::kQ8_0 ? 0.003F : 0.03F;
        auto wanted = nola::test::random_floats(base.size(), 4, step);
        for (std::size_t i = 0; i < base.size(); ++i) {
            wanted[i] += base[i];
        }
        std::vector<std::uint8_t> expected;
        nola::test::for_each_isa([&] {
            for (const int threads : {1, 3}) {
                std::vector<std::uint8_t> blocks(500 * nola::block_bytes(type));
                nola::quantize_amplified(type, base.data(), wanted.data(), 500, blocks.data(),
                                         threads);
                expected = expected.empty() ? blocks : expected;
                CHECK(blocks == expected);
                const auto got = dequantized(type, blocks);
                const auto sums =
                    nola::change_sums(base.data(), wanted.data(), got.data(), base.size());
                CHECK(std::fabs(sums.common / sums.wanted - 1.0) < 0.1);
            }
        });
        const auto nearest = dequantized(type, quantized(type, wanted));
        const auto sums =
            nola::change_sums(base.data(), wanted.data(), nearest.data(), base.size());
        CHECK(sums.common < 0.9 * sums.wanted);
    }
}

TEST_CASE("change_sums: of a change and what is there of it") {
    nola::test::for_each_isa([] {
        const std::vector<float> base(37, 1.0F);
        std::vector<float> wanted = base;
        std::vector<float> got = base;
        wanted[36] = 3.0F;
        wanted[0] = 2.0F;
        got[0] = 1.5F;
        got[20] = 5.0F;
        const auto sums = nola::change_sums(base.data(), wanted.data(), got.data(), 37);
        CHECK(sums.wanted == 5.0);
        CHECK(sums.common == 0.5);
        CHECK(sums.got == 16.25);
        CHECK(nola::change_sums(nullptr, nullptr, nullptr, 0).wanted == 0.0);
    });
}

TEST_CASE("quantize: pointers that cannot be right are refused") {
    float values[kBlockElements + 1] = {};
    std::uint8_t block[34] = {};
    const auto* unaligned = reinterpret_cast<const float*>(reinterpret_cast<char*>(values) + 1);
    CHECK_THROWS_AS(nola::quantize(BlockType::kQ8_0, unaligned, 1, block), std::invalid_argument);
    CHECK_THROWS_AS(nola::quantize(BlockType::kQ8_0, nullptr, 1, block), std::invalid_argument);
    CHECK_THROWS_AS(nola::dequantize(BlockType::kQ8_0, nullptr, 1, values), std::invalid_argument);
    nola::quantize(BlockType::kQ8_0, nullptr, 0, nullptr);
}
