#include "nola_adapter.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>
#include <utility>

#include "files/failure.h"
#include "files/printable.h"
#include "nola/philox.h"

namespace nola::adapters {

namespace {

using Failure = files::AdapterFailure;

// What PEFT announces for a classifier, whatever the model calls it.
constexpr std::string_view kHeads[] = {"classifier", "score"};

std::string hex(std::uint64_t value, int digits) {
    char text[17];
    std::snprintf(text, sizeof text, "%0*llx", digits, static_cast<unsigned long long>(value));
    return text;
}

std::string fingerprint_of_lines(std::vector<std::string> lines) {
    std::sort(lines.begin(), lines.end());
    std::string joined;
    for (const std::string& line : lines) {
        joined += (joined.empty() ? "" : "\n") + line;
    }
    return hex(fnv1a(joined), 16);
}

void check_coefficients(const Module& module, const char* name, const std::vector<float>& values,
                        std::string_view file) {
    if (!std::all_of(values.begin(), values.end(), [](float c) { return std::isfinite(c); })) {
        throw Failure(file, module.name,
                      std::string(name) + " holds an infinite or NaN coefficient");
    }
}

void check_fingerprint(const char* field, const std::string& stated, const std::string& found,
                       const char* said, const char* meaning, std::string_view file) {
    if (!stated.empty() && stated != found) {
        throw Failure(file, field,
                      "is " + files::printable(stated) + ", but " + said + found + ": " + meaning);
    }
}

bool is_head(std::string_view module) {
    return std::find(std::begin(kHeads), std::end(kHeads), module) != std::end(kHeads);
}

// Of PEFT's names for a classifier's head a model has one.
void check_saved_modules(const NolaAdapter& adapter, std::string_view file) {
    const auto is_there = [&](const std::string& module) {
        return std::any_of(adapter.whole_tensors.begin(), adapter.whole_tensors.end(),
                           [&](const std::string& name) { return is_saved(name, module); });
    };
    const auto& announced = adapter.config.modules_to_save;
    const bool has_head = std::any_of(announced.begin(), announced.end(), [&](const auto& module) {
        return is_head(module) && is_there(module);
    });
    for (const std::string& module : announced) {
        if (!is_there(module) && !(has_head && is_head(module))) {
            throw Failure(file, "modules_to_save",
                          "announces '" + files::printable(module) +
                              "', but the adapter holds no tensor of it; save the adapter again, "
                              "or remove the name if the model has no such module");
        }
    }
}

void check_owners(const NolaAdapter& adapter, std::string_view file) {
    std::set<std::string_view> owners(adapter.whole_tensors.begin(), adapter.whole_tensors.end());
    for (const Module& module : adapter.modules) {
        owners.insert(module.name);
    }
    for (const auto& part : adapter.config.tensors) {
        const std::string& name = part.first;
        if (owners.count(name) == 0) {
            throw Failure(file, "tensors",
                          "names '" + files::printable(name) +
                              "', which is neither a module nor a whole tensor of the adapter; "
                              "save the adapter again");
        }
    }
}

}  // namespace

Matrix NolaAdapter::factor(const Module& module, Factor factor, std::size_t features) const {
    const bool is_a = factor == Factor::kA;
    const auto rank = static_cast<std::size_t>(config.r);
    Matrix matrix;
    matrix.basis = config.basis;
    matrix.seed = config.seed;
    matrix.stream = stream_id(module.name, factor);
    matrix.num_basis = is_a ? module.alpha.size() : module.beta.size();
    matrix.shape = is_a ? Shape{rank, features} : Shape{features, rank};
    matrix.window = Window::whole(matrix.shape);
    return matrix;
}

bool is_saved(std::string_view tensor, std::string_view module) {
    return tensor == module || tensor.find(std::string(module) + ".") != tensor.npos;
}

std::string basis_fingerprint(std::uint64_t seed) {
    const std::uint64_t stream = stream_id("nola_edge.fingerprint", Factor::kA);
    const auto low = [](std::uint64_t word) { return static_cast<std::uint32_t>(word); };
    std::string text;
    for (std::uint32_t draw = 0; draw < 2; ++draw) {
        const PhiloxCounter words =
            philox4x32_10({0, draw, low(stream), low(stream >> 32)}, {low(seed), low(seed >> 32)});
        for (const std::uint32_t word : words) {
            text += hex(word, 8);
        }
    }
    return text;
}

std::string modules_fingerprint(const std::vector<Module>& modules) {
    std::vector<std::string> names;
    names.reserve(modules.size());
    for (const Module& module : modules) {
        names.push_back(module.name);
    }
    return fingerprint_of_lines(std::move(names));
}

std::string shapes_fingerprint(const std::vector<Module>& modules,
                               const std::uint64_t* out_features,
                               const std::uint64_t* in_features) {
    std::vector<std::string> lines;
    lines.reserve(modules.size());
    for (std::size_t i = 0; i < modules.size(); ++i) {
        lines.push_back(modules[i].name + " " + std::to_string(out_features[i]) + "x" +
                        std::to_string(in_features[i]));
    }
    return fingerprint_of_lines(std::move(lines));
}

void check_adapter(const NolaAdapter& adapter, std::string_view file) {
    const Config& config = adapter.config;
    check_saved_modules(adapter, file);
    check_fingerprint("basis_fingerprint", config.basis_fingerprint, basis_fingerprint(config.seed),
                      "the seed gives ", "the adapter was made with another generator", file);
    check_fingerprint("modules_fingerprint", config.modules_fingerprint,
                      modules_fingerprint(adapter.modules), "the tensors' names give ",
                      "modules were renamed, added or lost since it was made", file);
    for (const Module& module : adapter.modules) {
        if (module.name.empty()) {
            throw Failure(file, "", "is not a module name");
        }
        check_coefficients(module, "alpha", module.alpha, file);
        check_coefficients(module, "beta", module.beta, file);
    }
    check_owners(adapter, file);
}

}  // namespace nola::adapters
