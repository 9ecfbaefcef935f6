// A NOLA adapter: what its random matrices are, and coefficients for each module.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "config.h"
#include "expected.h"

namespace nola::adapters {

struct Module {
    std::string name;  // that it had in training, from which its streams follow
    std::vector<float> alpha;
    std::vector<float> beta;
};

struct NolaAdapter {
    Config config;
    std::vector<Module> modules;
    // Tensors that the adapter has whole, by their names in the file that holds them.
    std::vector<std::string> whole_tensors;
    // What its publisher says that merging it gives.
    std::vector<ExpectedResult> expected;

    // The matrix that a factor of a module is, of rank x features (A) or features x rank (B), as a
    // whole.
    Matrix factor(const Module& module, Factor factor, std::size_t features) const;
};

// Whether a whole tensor belongs to a module that is saved whole, as PEFT finds it: `norm` is the
// end of `layers.0.input_layernorm` too.
bool is_saved(std::string_view tensor, std::string_view module);

// The eight words of the generator that tell a foreign one (docs/adapter-format.md,
// *Fingerprints*).
std::string basis_fingerprint(std::uint64_t seed);

std::string modules_fingerprint(const std::vector<Module>& modules);

// Of modules with so many outputs and inputs each, in their order.
std::string shapes_fingerprint(const std::vector<Module>& modules,
                               const std::uint64_t* out_features, const std::uint64_t* in_features);

// Throws files::Failure, naming `file`, where contents contradict the configuration.
void check_adapter(const NolaAdapter& adapter, std::string_view file);

}  // namespace nola::adapters
