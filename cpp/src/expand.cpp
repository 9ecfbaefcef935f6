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
std::vector<float> scaled_coefficients(const BasisStream& stream, const float* coefficients,
                                       std::size_t num_basis, std::size_t per_draw) {
    const std::size_t draws = draw_count(stream.kind, num_basis);
    std::vector<float> scaled(draws * per_draw, 0.0F);
    const float g = gain(stream.kind, num_basis);
    std::transform(coefficients, coefficients + num_basis, scaled.begin(),
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

void expand(const BasisStream& stream, const float* coefficients, std::size_t num_basis,
            Shape shape, Window window, float* out, int num_threads) {
    check_basis_arguments(stream, num_basis, shape, window);
    check_aligned("coefficients", coefficients, alignof(float));
    check_aligned("out", out, alignof(float));
    const kernels::KernelSet& kernel_set = active_kernels();
    const kernels::Generator generator = make_generator(stream);
    const std::uint32_t draws = draw_count(stream.kind, num_basis);

    std::vector<float> weights;
    {
        const FpEnvironment environment;
        weights =
            stream.kind == Basis::kRademacher
                ? sign_tables(scaled_coefficients(stream, coefficients, num_basis,
                                                  kernels::kRademacherPerDraw))
                : scaled_coefficients(stream, coefficients, num_basis, kernels::kUniformPerDraw);
    }
    const auto kernel = stream.kind == Basis::kRademacher ? kernel_set.expand_rademacher
                                                          : kernel_set.expand_uniform;

    const Pieces pieces(shape, window);
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
