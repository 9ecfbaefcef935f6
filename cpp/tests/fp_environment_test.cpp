#include "fp_environment.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "nola/expand.h"
#include "nola/merge.h"
#include "nola/project.h"
#include "reference.h"

namespace {

#if defined(__x86_64__) || defined(__i386__)
constexpr nola::FpControl kFlush = 0x8040;
constexpr nola::FpControl kRoundUp = 0x4000;
constexpr nola::FpControl kControls = 0xFFC0;  // the others say what has happened
#else
constexpr nola::FpControl kFlush = 1U << 24;
constexpr nola::FpControl kRoundUp = 1U << 22;
constexpr nola::FpControl kControls = 0x07C00000;
#endif

// Everything that computes, on numbers that flushing or rounding otherwise would change.
std::vector<float> compute(std::vector<float> weight, const std::vector<float>& b) {
    const std::vector<float> alpha = {1.1e-44F, 3e-45F, 1e-40F, 1e-44F, 7e-41F};
    std::vector<float> results;
    for (const nola::Basis kind : {nola::Basis::kRademacher, nola::Basis::kUniform}) {
        const nola::Shape shape{40, 64};
        const nola::Matrix matrix{kind, 9, 4, alpha.size(), shape, nola::Window::whole(shape)};
        std::vector<float> a(shape.rows * shape.cols);
        nola::expand(matrix, alpha.data(), a.data(), 2);
        CHECK(nola::merge(weight.data(), nola::ElementType::kFloat32, 64, 64,
                          {b.data(), a.data(), 40, 0.7F}, 2));
        std::vector<float> gradient(alpha.size());
        nola::project(matrix, a.data(), gradient.data(), 2);
        nola::scale(gradient.data(), gradient.size(), 0.1);
        for (const auto& part : {a, weight, gradient}) {
            results.insert(results.end(), part.begin(), part.end());
        }
    }
    return results;
}

}  // namespace

TEST_CASE("floating-point environment: the caller's changes no bit, and survives") {
    const std::vector<float> weight = nola::test::random_floats(std::size_t{64} * 64, 5, 1e-39F);
    const std::vector<float> b = nola::test::random_floats(std::size_t{64} * 40, 6);
    const std::vector<float> expected = compute(weight, b);
    bool subnormal = false;
    for (const float value : expected) {
        subnormal = subnormal || std::fpclassify(value) == FP_SUBNORMAL;
    }
    CHECK(subnormal);
    const nola::FpControl before = nola::fp_control();
    for (const nola::FpControl changed : {kFlush, kRoundUp}) {
        nola::set_fp_control(nola::kSpecifiedControl | changed);
        volatile float tiny = 2e-39F;
        volatile float half = tiny * 0.5F;
        const std::vector<float> got = compute(weight, b);
        const nola::FpControl after = nola::fp_control();
        nola::set_fp_control(before);
        CHECK((changed != kFlush || !(half > 0.0F)));  // it did take effect
        CHECK((after & kControls) == ((nola::kSpecifiedControl | changed) & kControls));
        CHECK(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
}
