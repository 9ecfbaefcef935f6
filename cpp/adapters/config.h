// `adapter_config.json`: which adapter coefficients belong to (docs/adapter-format.md).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "nola/basis.h"
#include "yyjson.h"

namespace nola::adapters {

// Which stored tensor a module is, where its name does not say so; lines [0, 0) are all of it. An
// empty name: it is in several tensors, or in another order.
struct TensorPart {
    std::string tensor;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
};

// The fields that matter to merged weights.
struct Config {
    std::uint64_t r = 0;
    std::uint64_t num_basis_a = 0;
    std::uint64_t num_basis_b = 0;
    std::uint64_t seed = 0;
    double lora_alpha = 0;
    double beta_unit = 1;
    Basis basis = Basis::kRademacher;
    bool use_rslora = false;
    bool fan_in_fan_out = false;
    bool exact_first_alpha = false;
    int coefficient_bits = 0;  // 0: not quantised
    std::string bias = "none";
    std::vector<std::string> modules_to_save;
    std::string basis_fingerprint;
    std::string base_fingerprint;
    std::string modules_fingerprint;
    std::string shapes_fingerprint;
    std::map<std::string, TensorPart> tensors;

    // lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA, times beta_unit, in this order.
    double scaling() const;
};

// Throws Failure, naming `file`, field and value, at a field that is out of range, or is not known
// and does not say "off".
Config parse_config(yyjson_val* object, std::string_view file);

// Known fields without influence on the weights, sorted.
const std::vector<std::string_view>& bookkeeping_fields();

}  // namespace nola::adapters
