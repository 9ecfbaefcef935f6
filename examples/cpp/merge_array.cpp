// Merges an adapter's coefficients for one module into an array, and prints what came out.
//
//   cmake -S examples/cpp -B build/example -DCMAKE_PREFIX_PATH=<where nola-edge is installed>
#include <nola/expand.h>
#include <nola/isa.h>
#include <nola/merge.h>

#include <cstdio>
#include <string>
#include <vector>

int main() {
    constexpr std::size_t kOut = 256, kIn = 512, kRank = 8, kBasis = 64;
    constexpr std::uint64_t kSeed = 42;
    const std::string module = "model.layers.0.self_attn.q_proj";

    // The whole adapter for this module: a seed and 2 x 64 coefficients.
    std::vector<float> alpha(kBasis), beta(kBasis);
    for (std::size_t i = 0; i < kBasis; ++i) {
        alpha[i] = 0.01F * static_cast<float>(i);
        beta[i] = 0.01F * static_cast<float>(kBasis - i);
    }

    std::vector<float> a(kRank * kIn), b(kOut * kRank);
    const auto matrix = [&](nola::Factor factor, nola::Shape shape) {
        return nola::Matrix{
            nola::Basis::kRademacher,  kSeed, nola::stream_id(module, factor), kBasis, shape,
            nola::Window::whole(shape)};
    };
    nola::expand(matrix(nola::Factor::kA, {kRank, kIn}), alpha.data(), a.data());
    nola::expand(matrix(nola::Factor::kB, {kOut, kRank}), beta.data(), b.data());

    std::vector<float> weight(kOut * kIn, 1.0F);
    const nola::LowRank update{b.data(), a.data(), kRank, 2.0F};
    if (!nola::merge(weight.data(), nola::ElementType::kFloat32, kOut, kIn, update)) {
        std::fputs("a merged weight is not finite\n", stderr);
        return 1;
    }
    std::printf("%s: first merged weights %a %a %a\n",
                std::string(nola::isa_name(nola::active_isa())).c_str(),
                static_cast<double>(weight[0]), static_cast<double>(weight[1]),
                static_cast<double>(weight[2]));
    return 0;
}
