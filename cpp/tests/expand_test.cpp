#include "nola/expand.h"

#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>

#include "reference.h"

namespace {

using nola::Basis;
using nola::BasisStream;
using nola::Shape;
using nola::Window;

constexpr float kGuard = 12345.0F;

// Compares a window, written between guards, with the reference.
void check_window(const BasisStream& stream, const std::vector<float>& alpha, Shape shape,
                  Window window, int threads) {
    const std::size_t count = window.rows() * window.cols();
    std::vector<float> out(count + 2, kGuard);
    nola::expand(stream, alpha.data(), alpha.size(), shape, window, out.data() + 1, threads);
    CHECK(out.front() == kGuard);
    CHECK(out.back() == kGuard);
    bool same = true;
    for (std::size_t r = 0; r < window.rows(); ++r) {
        for (std::size_t c = 0; c < window.cols(); ++c) {
            const std::uint64_t element =
                std::uint64_t{window.row_begin + r} * shape.cols + window.col_begin + c;
            const float expected = nola::test::expand_element(stream, alpha, element);
            same = same && std::memcmp(&expected, &out[1 + r * window.cols() + c], 4) == 0;
        }
    }
    CHECK(same);
}

}  // namespace

TEST_CASE("expand: the reference's bits for shapes, windows, kinds and threads") {
    nola::test::for_each_isa([] {
        for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
            for (const std::size_t k : {1U, 3U, 4U, 31U, 32U, 33U, 70U}) {
                const BasisStream stream{kind, 0x123456789ABCDEFULL + k, 0xFEDCBA9876543210ULL};
                const std::vector<float> alpha =
                    nola::test::random_floats(k, static_cast<std::uint32_t>(k));
                check_window(stream, alpha, {1, 1}, {0, 1, 0, 1}, 1);
                check_window(stream, alpha, {0, 5}, {0, 0, 0, 5}, 2);
                check_window(stream, alpha, {9, 64}, Window::whole({9, 64}), 2);
                check_window(stream, alpha, {37, 59}, Window::whole({37, 59}), 7);
                check_window(stream, alpha, {37, 59}, {3, 30, 7, 58}, 2);
                check_window(stream, alpha, {37, 59}, {5, 6, 7, 8}, 1);
                check_window(stream, alpha, {3, 5000}, {1, 2, 100, 4900}, 7);
            }
        }
    });
}

TEST_CASE("expand: arguments are checked before anything is written") {
    float out = kGuard;
    const std::vector<float> alpha(4, 1.0F);
    const auto run = [&](const BasisStream& stream, std::size_t k, Shape shape, Window window) {
        nola::expand(stream, alpha.data(), k, shape, window, &out, 1);
    };
    const BasisStream good;
    CHECK_THROWS_AS(run({Basis::kRademacher, 1ULL << 63, 0}, 4, {1, 1}, {0, 1, 0, 1}),
                    std::invalid_argument);
    CHECK_THROWS_AS(run(good, 0, {1, 1}, {0, 1, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(good, 4, {1U << 18, 1U << 17}, {0, 1, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(good, 4, {1, 1}, {0, 2, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(good, 4, {1, 1}, {0, 1, 1, 0}), std::invalid_argument);
    CHECK(out == kGuard);
}
