#include "nola/expand.h"

#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>

#include "reference.h"

namespace {

using nola::Basis;
using nola::Matrix;
using nola::Shape;
using nola::Window;

constexpr float kGuard = 12345.0F;

// Compares a window, written between guards, with the reference.
void check_window(Matrix matrix, Shape shape, Window window, int threads) {
    matrix.shape = shape;
    matrix.window = window;
    const std::vector<float> alpha =
        nola::test::random_floats(matrix.num_basis, static_cast<std::uint32_t>(matrix.num_basis));
    const std::size_t count = window.rows() * window.cols();
    std::vector<float> out(count + 2, kGuard);
    nola::expand(matrix, alpha.data(), out.data() + 1, threads);
    CHECK(out.front() == kGuard);
    CHECK(out.back() == kGuard);
    bool same = true;
    for (std::size_t r = 0; r < window.rows(); ++r) {
        for (std::size_t c = 0; c < window.cols(); ++c) {
            const std::uint64_t element =
                std::uint64_t{window.row_begin + r} * shape.cols + window.col_begin + c;
            const float expected = nola::test::expand_element(matrix, alpha, element);
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
                const Matrix matrix{kind, 0x123456789ABCDEFULL + k, 0xFEDCBA9876543210ULL, k, {},
                                    {}};
                check_window(matrix, {1, 1}, {0, 1, 0, 1}, 1);
                check_window(matrix, {0, 5}, {0, 0, 0, 5}, 2);
                check_window(matrix, {9, 64}, Window::whole({9, 64}), 2);
                check_window(matrix, {37, 59}, Window::whole({37, 59}), 7);
                check_window(matrix, {37, 59}, {3, 30, 7, 58}, 2);
                check_window(matrix, {37, 59}, {5, 6, 7, 8}, 1);
                check_window(matrix, {3, 5000}, {1, 2, 100, 4900}, 7);
            }
        }
    });
}

TEST_CASE("expand: arguments are checked before anything is written") {
    float out = kGuard;
    const std::vector<float> alpha(4, 1.0F);
    const auto run = [&](std::uint64_t seed, std::size_t k, Shape shape, Window window) {
        nola::expand({Basis::kRademacher, seed, 0, k, shape, window}, alpha.data(), &out, 1);
    };
    CHECK_THROWS_AS(run(1ULL << 63, 4, {1, 1}, {0, 1, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(0, 0, {1, 1}, {0, 1, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(0, 4, {1U << 18, 1U << 17}, {0, 1, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(0, 4, {1, 1}, {0, 2, 0, 1}), std::invalid_argument);
    CHECK_THROWS_AS(run(0, 4, {1, 1}, {0, 1, 1, 0}), std::invalid_argument);
    CHECK(out == kGuard);
}
