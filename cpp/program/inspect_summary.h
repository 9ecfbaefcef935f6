// What `nola inspect` says of an adapter, and that as JSON.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adapters/nola_adapter.h"
#include "adapters/statistics.h"
#include "files/json.h"

namespace nola::program {

inline constexpr const char* kFingerprints[] = {"basis", "modules", "shapes", "base"};

struct Summary {
    std::string given;
    std::string path;
    std::uint64_t bytes = 0;
    adapters::NolaAdapter adapter;
    std::optional<files::Json> about;
    std::vector<std::string> modules;
    std::vector<adapters::TensorShape> whole_shapes;
    adapters::Distribution alpha;
    adapters::Distribution beta;

    // Of a packed adapter, by the path as given. Throws files::Failure.
    static Summary of(const std::string& given);

    // A field of the configuration as it is stored; null if it is not.
    yyjson_val* config(const char* name) const;
    std::uint64_t coefficients() const;
    // "missing", or whether it was checked.
    const char* state_of(std::string_view fingerprint) const;
    const char* basis_name() const;
};

// The largest magnitude.
double largest_of(const std::vector<float>& values);

// Prints JSON, as the Python package does.
void print_json(const Summary& summary, bool lists_modules);

}  // namespace nola::program
