#include "nola/merge.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "reference.h"

namespace {

using nola::ElementType;

float from_bits(std::uint32_t bits) {
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

std::uint32_t to_bits(float value) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Finite halves only: exact by construction from significand and exponent.
float half_value(std::uint16_t half) {
    const int exponent = (half >> 10) & 31;
    const int significand = half & 1023;
    const float magnitude = exponent == 0
                                ? std::ldexp(static_cast<float>(significand), -24)
                                : std::ldexp(static_cast<float>(significand + 1024), exponent - 25);
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

float merged_value(float weight, const nola::LowRank& update, std::size_t cols, std::size_t m,
                   std::size_t n) {
    float acc = 0.0F;
    for (std::size_t j = 0; j < update.rank; ++j) {
        acc = std::fma(update.b[m * update.rank + j], update.a[j * cols + n], acc);
    }
    return std::fma(update.scaling, acc, weight);
}

}  // namespace

TEST_CASE("merge: float32 has the bits of std::fma for any rank and size") {
    nola::test::for_each_isa([] {
        for (const std::size_t rank : {0U, 1U, 5U, 300U}) {
            for (const auto& [rows, cols] :
                 {std::pair<std::size_t, std::size_t>{1, 1}, {7, 65}, {13, 64}, {48, 131}}) {
                for (const float scale : {1.0F, 1e-20F, 1e-38F}) {
                    const auto b = nola::test::random_floats(rows * rank, 1, scale);
                    const auto a = nola::test::random_floats(rank * cols, 2);
                    const auto before = nola::test::random_floats(rows * cols, 3, scale);
                    const nola::LowRank update{b.data(), a.data(), rank, 0.7F};
                    for (const int threads : {1, 2, 7}) {
                        auto weight = before;
                        CHECK(nola::merge(weight.data(), ElementType::kFloat32, rows, cols, update,
                                          threads));
                        bool same = true;
                        for (std::size_t e = 0; e < weight.size(); ++e) {
                            const float expected =
                                merged_value(before[e], update, cols, e / cols, e % cols);
                            same = same && to_bits(expected) == to_bits(weight[e]);
                        }
                        CHECK(same);
                    }
                }
            }
        }
    });
}

TEST_CASE("merge: fused multiply-add on hard cases") {
    // Products of neighbours of one, cancelled to their last bits; ties broken by the far addend.
    const float one = 1.0F;
    const float up = std::nextafter(one, 2.0F);
    const float down = std::nextafter(one, 0.0F);
    const float tiny = from_bits(1);
    const std::vector<float> values = {one,   -one,  up,     -up,    down, -down, tiny,
                                       -tiny, 3e38F, -3e38F, 1e-30F, 0.0F, -0.0F, 16777217.0F};
    nola::test::for_each_isa([&] {
        for (const float x : values) {
            for (const float y : values) {
                for (const float z : values) {
                    float weight = z;
                    const nola::LowRank update{&one, &y, 1, x};
                    const bool finite =
                        nola::merge(&weight, ElementType::kFloat32, 1, 1, update, 1);
                    const float expected = std::fma(x, std::fma(one, y, 0.0F), z);
                    CHECK(finite == std::isfinite(expected));
                    if (finite) {
                        CHECK(to_bits(weight) == to_bits(expected));
                    }
                }
            }
        }
    });
}

TEST_CASE("merge: every finite half and bfloat16 survives a zero update") {
    nola::test::for_each_isa([] {
        for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
            const unsigned infinity = type == ElementType::kFloat16 ? 0x7C00U : 0x7F80U;
            std::vector<std::uint16_t> all;
            for (unsigned bits = 0; bits < 65536; ++bits) {
                if ((bits & 0x7FFFU) < infinity) {
                    all.push_back(static_cast<std::uint16_t>(bits));
                }
            }
            auto weight = all;
            const std::vector<float> zeros(all.size(), 0.0F);
            const float one = 1.0F;
            const nola::LowRank update{&one, zeros.data(), 1, 1.0F};
            CHECK(nola::merge(weight.data(), type, 1, all.size(), update, 1));
            all[infinity] = 0;  // -0 + 0 is +0
            CHECK(weight == all);
        }
    });
}

TEST_CASE("merge: halves and bfloat16 are rounded to nearest even") {
    nola::test::for_each_isa([] {
        const float one = 1.0F;
        for (unsigned half = 0; half + 1 < 0x7C00U; ++half) {
            const auto low = static_cast<std::uint16_t>(half);
            const float middle =
                0.5F * (half_value(low) + half_value(static_cast<std::uint16_t>(half + 1)));
            std::uint16_t weight = 0;
            const nola::LowRank update{&one, &middle, 1, 1.0F};
            REQUIRE(nola::merge(&weight, ElementType::kFloat16, 1, 1, update, 1));
            REQUIRE(weight == half + (half & 1U));
        }
        for (unsigned upper = 0; upper + 1 < 0x7F80U; upper += 7) {
            const float middle = from_bits((upper << 16) + 0x8000U);
            std::uint16_t weight = 0;
            const nola::LowRank update{&one, &middle, 1, 1.0F};
            REQUIRE(nola::merge(&weight, ElementType::kBFloat16, 1, 1, update, 1));
            REQUIRE(weight == upper + (upper & 1U));
        }
    });
}

TEST_CASE("merge: what is not finite after rounding is reported") {
    nola::test::for_each_isa([] {
        const float one = 1.0F;
        const float nan = std::numeric_limits<float>::quiet_NaN();
        const float infinity = std::numeric_limits<float>::infinity();
        const auto finite = [&](ElementType type, float value) {
            std::uint32_t weight = 0;
            return nola::merge(&weight, type, 1, 1, {&one, &value, 1, 1.0F}, 1);
        };
        for (const ElementType type :
             {ElementType::kFloat32, ElementType::kFloat16, ElementType::kBFloat16}) {
            CHECK(finite(type, 65000.0F));
            CHECK_FALSE(finite(type, nan));
            CHECK_FALSE(finite(type, -nan));
            CHECK_FALSE(finite(type, from_bits(0x7FFFFFFF)));
            CHECK_FALSE(finite(type, -infinity));
        }
        CHECK(finite(ElementType::kFloat16, 65519.996F));
        CHECK_FALSE(finite(ElementType::kFloat16, 65520.0F));
        CHECK(finite(ElementType::kBFloat16, from_bits(0x7F7F7FFF)));
        CHECK_FALSE(finite(ElementType::kBFloat16, from_bits(0x7F7F8000)));
    });
}

TEST_CASE("merge: null pointers are refused") {
    CHECK_THROWS_AS((void)nola::merge(nullptr, ElementType::kFloat32, 1, 1, {}, 1),
                    std::invalid_argument);
    CHECK(nola::merge(nullptr, ElementType::kFloat32, 0, 5, {}, 1));
}

TEST_CASE("merge: pointers that are not aligned are refused before anything is written") {
    alignas(8) char room[64] = {};
    const auto* floats = reinterpret_cast<const float*>(room + 32);
    const auto* odd = reinterpret_cast<const float*>(room + 33);
    const auto merges = [&](int at, const float* b, const float* a) {
        return nola::merge(room + at, ElementType::kFloat16, 1, 2, {b, a, 1, 1.0F}, 1);
    };
    CHECK_THROWS_WITH_AS((void)merges(1, floats, floats), doctest::Contains("weight: "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS((void)merges(0, odd, floats), doctest::Contains("lora_b: "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS((void)merges(0, floats, odd), doctest::Contains("lora_a: "),
                         std::invalid_argument);
    CHECK(merges(2, floats, floats));
}

TEST_CASE("merge: from one place to another, in windows, as in place") {
    nola::test::for_each_isa([] {
        constexpr std::size_t kRows = 13;
        constexpr std::size_t kCols = 131;
        constexpr std::size_t kRank = 5;
        const auto b = nola::test::random_floats(kRows * kRank, 1);
        const auto a = nola::test::random_floats(kRank * kCols, 2);
        const nola::LowRank update{b.data(), a.data(), kRank, 0.7F};
        for (const auto& [base_stride, out_stride] :
             {std::pair<std::size_t, std::size_t>{kCols, kCols}, {140, kCols}, {kCols, 150}}) {
            const auto base = nola::test::random_floats(kRows * base_stride, 3);
            auto got = nola::test::random_floats(kRows * out_stride, 4);
            std::vector<float> expected(kRows * kCols);
            for (std::size_t m = 0; m < kRows; ++m) {
                std::memcpy(&expected[m * kCols], &base[m * base_stride], kCols * sizeof(float));
            }
            CHECK(nola::merge(expected.data(), ElementType::kFloat32, kRows, kCols, update, 1));
            auto guarded = got;
            for (std::size_t m = 0; m < kRows; ++m) {
                std::memcpy(&guarded[m * out_stride], &expected[m * kCols], kCols * sizeof(float));
            }
            CHECK(nola::merge({base.data(),
                               got.data(),
                               ElementType::kFloat32,
                               {kRows, kCols},
                               base_stride,
                               out_stride},
                              update, 2));
            CHECK(std::memcmp(got.data(), guarded.data(), got.size() * sizeof(float)) == 0);
        }
    });
}

TEST_CASE("merge: places that cannot be are refused before anything is written") {
    std::vector<float> room(64, 1.0F);
    const auto before = room;
    const float one = 1.0F;
    const std::vector<float> a(4, 1.0F);
    const auto merged = [&](const float* base, float* out, std::size_t base_stride) {
        const nola::Weight weight{base, out, ElementType::kFloat32, {1, 4}, base_stride, 4};
        return nola::merge(weight, {&one, a.data(), 1, 1.0F}, 1);
    };
    CHECK_THROWS_WITH_AS((void)merged(nullptr, room.data(), 4), doctest::Contains("base: "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS((void)merged(room.data(), nullptr, 4), doctest::Contains("out: "),
                         std::invalid_argument);
    CHECK_THROWS_WITH_AS((void)merged(room.data() + 2, room.data(), 4),
                         doctest::Contains("out: overlaps"), std::invalid_argument);
    CHECK_THROWS_WITH_AS((void)merged(room.data() + 8, room.data(), 3), doctest::Contains("base: "),
                         std::invalid_argument);
    CHECK(room == before);
    CHECK(merged(room.data(), room.data(), 4));
    CHECK(merged(room.data() + 4, room.data(), 4));
}
