#include "nola/expand.h"

#include <algorithm>
#include <vector>

#include "alignment.h"
#include "dispatch.h"
#include "generator.h"
#include "parallel.h"
#include "stripes.h"

namespace nola {
namespace {

using kernels::kSignGroup;
using kernels::kSignTable;

// c_i = fl32(alpha_i * g), padded with zeros to whole draws.
std::vector<float> scaled_coefficients(const Matrix& matrix, const float* coefficients,
                                       std::size_t per_draw) {
    std::vector<float> scaled(draw_count(matrix) * per_draw, 0.0F);
    const float g = gain(matrix.basis, matrix.num_basis);
    std::transform(coefficients, coefficients + matrix.num_basis, scaled.begin(),
                   [g](float alpha) { return alpha * g; });
    return scaled;
}

// For each group of four bases the sixteen sums (±c0 ± c1) + (±c2 ± c3); bit i of the index set
// means -c_i. A group of padding holds zeros of either sign, and adding those changes nothing:
// a sum that starts at +0 and rounds to nearest never becomes -0.
std::vector<float> sign_tables(const std::vector<float>& scaled) {
    std::vector<float> tables(scaled.size() / kSignGroup * kSignTable);
    float* entry = tables.data();
    for (std::size_t group = 0; group < scaled.size(); group += kSignGroup) {
        for (unsigned bits = 0; bits < kSignTable; ++bits) {
            const auto term = [&](unsigned i) {
                const float c = scaled[group + i];
                return ((bits >> i) & 1U) != 0 ? -c : c;
            };
            *entry++ = (term(0) + term(1)) + (term(2) + term(3));
        }
    }
    return tables;
}

}  // namespace

void expand(const Matrix& matrix, const float* coefficients, float* out, int num_threads) {
    check_matrix(matrix);
    check_aligned("coefficients", coefficients, alignof(float));
    check_aligned("out", out, alignof(float));
    const kernels::KernelSet& kernel_set = active_kernels();
    const kernels::Generator generator = make_generator(matrix);
    const std::uint32_t draws = draw_count(matrix);

    std::vector<float> weights;
    {
        const FpEnvironment environment;
        weights = matrix.basis == Basis::kRademacher
                      ? sign_tables(
                            scaled_coefficients(matrix, coefficients, kernels::kRademacherPerDraw))
                      : scaled_coefficients(matrix, coefficients, kernels::kUniformPerDraw);
    }
    const auto kernel = matrix.basis == Basis::kRademacher ? kernel_set.expand_rademacher
                                                           : kernel_set.expand_uniform;

    const Pieces pieces(matrix.shape, matrix.window);
    parallel_for(pieces.count(), num_threads, [&](std::size_t index) {
        const Piece piece = pieces[index];
        if (piece.begin >= piece.end) {
            return;
        }
        const StripeSpan span(piece);
        if (span.whole(piece)) {
            kernel(generator, span.range, weights.data(), draws, out + piece.offset);
            return;
        }
        alignas(64) float stripes[Pieces::kPieceElements];
        kernel(generator, span.range, weights.data(), draws, stripes);
        std::copy_n(stripes + span.lead, piece.end - piece.begin, out + piece.offset);
    });
}

}  // namespace nola
