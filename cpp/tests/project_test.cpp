#include "nola/project.h"

#include <doctest/doctest.h>

#include "reference.h"

TEST_CASE("project: the adjoint of expand, the same bits on every set and thread count") {
    for (const nola::Basis kind : {nola::Basis::kRademacher, nola::Basis::kUniform}) {
        const nola::Shape shape{61, 127};
        const nola::Window window{2, 60, 1, 120};
        constexpr std::size_t kBasis = 41;
        const nola::Matrix matrix{kind, 42, 7, kBasis, shape, window};
        const std::vector<float> grad = nola::test::random_floats(window.rows() * window.cols(), 3);
        std::vector<float> first;
        nola::test::for_each_isa([&] {
            for (const int threads : {1, 2, 7}) {
                std::vector<float> out(kBasis);
                nola::project(matrix, grad.data(), out.data(), threads);
                if (first.empty()) {
                    first = out;
                }
                CHECK(out == first);
            }
        });
        const double g = static_cast<double>(nola::gain(kind, kBasis));
        for (std::size_t i = 0; i < kBasis; ++i) {
            double sum = 0.0;
            for (std::size_t r = 0; r < window.rows(); ++r) {
                for (std::size_t c = 0; c < window.cols(); ++c) {
                    const std::uint64_t element =
                        (window.row_begin + r) * shape.cols + window.col_begin + c;
                    sum += static_cast<double>(grad[r * window.cols() + c]) *
                           static_cast<double>(nola::test::basis_value(matrix, i, element));
                }
            }
            CHECK(static_cast<double>(first[i]) == doctest::Approx(g * sum).epsilon(1e-4));
        }
    }
}
