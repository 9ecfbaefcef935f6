#include "nola/philox.h"

#include <doctest/doctest.h>

#include "nola/expand.h"
#include "reference.h"

using nola::philox4x32_10;
using nola::PhiloxCounter;

TEST_CASE("philox: known answers of Random123") {
    CHECK(philox4x32_10({0, 0, 0, 0}, {0, 0}) ==
          PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    constexpr std::uint32_t kOnes = 0xffffffff;
    CHECK(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}) ==
          PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(
        philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("philox: the 10000th value of std::philox4x32") {
    CHECK(philox4x32_10({2499, 0, 0, 0}, {20111115, 0})[3] == 1955073260U);
}

TEST_CASE("philox: the kernels' words, read back as signs of 32 bases") {
    nola::test::for_each_isa([] {
        for (std::size_t element = 0; element < 64; element += 16) {
            std::uint32_t bits = 0;
            for (std::uint32_t i = 0; i < 32; ++i) {
                std::vector<float> one_hot(32, 0.0F);
                one_hot[i] = 1.0F;
                float value = 0.0F;
                const nola::Window window{0, 1, element, element + 1};
                nola::expand({nola::Basis::kRademacher, 0, 0, 32, {1, 64}, window}, one_hot.data(),
                             &value, 1);
                bits |= static_cast<std::uint32_t>(value < 0.0F) << i;
            }
            CHECK(bits == philox4x32_10({0, 0, 0, 0}, {0, 0})[element / 16]);
        }
    });
}
