#include "inspect_summary.h"

#include <algorithm>
#include <cmath>

#include "adapter.h"
#include "adapters/packed.h"
#include "files/safetensors.h"
#include "options.h"
#include "output.h"

namespace nola::program {

namespace {

using adapters::Distribution;
using adapters::Module;
using adapters::NolaAdapter;
using adapters::Pattern;

std::vector<float> all_values(const NolaAdapter& adapter, std::vector<float> Module::* factor) {
    std::vector<float> values;
    for (const Module& module : adapter.modules) {
        const std::vector<float>& own = module.*factor;
        values.insert(values.end(), own.begin(), own.end());
    }
    return values;
}

std::string stated(const adapters::Config& config, std::string_view fingerprint) {
    return fingerprint == "basis"     ? config.basis_fingerprint
           : fingerprint == "modules" ? config.modules_fingerprint
           : fingerprint == "shapes"  ? config.shapes_fingerprint
                                      : config.base_fingerprint;
}

// JSON, as the Python package prints it.
class Printer {
public:
    explicit Printer(const Summary& summary) : summary_(summary) {}

    void print(bool lists_modules) const {
        add_identity();
        add_contents();
        json_.set("expected", expected());
        json_.set("config", config());
        json_.set("alpha", distribution(summary_.alpha));
        json_.set("beta", distribution(summary_.beta));
        if (lists_modules) {
            json_.set("largest", largest());
        }
        json_.print();
    }

private:
    yyjson_mut_val* expected() const {
        yyjson_mut_val* list = json_.list();
        for (const adapters::ExpectedResult& result : summary_.adapter.expected) {
            yyjson_mut_val* entry = json_.object();
            json_.set(entry, "name", json_.text(result.name));
            json_.set(entry, "kind", json_.text(result.kind));
            json_.set(entry, "base_fingerprint", json_.text(result.base_fingerprint));
            json_.set(entry, "sha256", json_.text(result.sha256));
            yyjson_mut_val* hashes = json_.object();
            for (const auto& [path, hash] : result.files) {
                json_.set(hashes, path, json_.text(hash));
            }
            json_.set(entry, "files", hashes);
            yyjson_mut_arr_append(list, entry);
        }
        return list;
    }

    yyjson_mut_val* text_or_null(const std::string& text) const {
        return text.empty() ? json_.nothing() : json_.text(text);
    }

    yyjson_mut_val* raw(const char* name) const {
        yyjson_val* value = summary_.config(name);
        return value == nullptr ? json_.nothing() : json_.copy(value);
    }

    yyjson_mut_val* texts(const std::vector<std::string>& values) const {
        yyjson_mut_val* list = json_.list();
        for (const std::string& value : values) {
            yyjson_mut_arr_append(list, json_.text(value));
        }
        return list;
    }

    yyjson_mut_val* groups(const std::vector<Pattern>& patterns) const {
        yyjson_mut_val* list = json_.list();
        for (const Pattern& pattern : patterns) {
            yyjson_mut_val* shapes = json_.list();
            for (const auto& [shape, count] : pattern.shapes) {
                yyjson_mut_val* sizes = json_.list();
                for (const std::uint64_t size : shape) {
                    yyjson_mut_arr_append(sizes, json_.number(size));
                }
                yyjson_mut_val* entry = json_.object();
                json_.set(entry, "shape", sizes);
                json_.set(entry, "count", json_.number(count));
                yyjson_mut_arr_append(shapes, entry);
            }
            yyjson_mut_val* group = json_.object();
            json_.set(group, "name", json_.text(pattern.name));
            json_.set(group, "count", json_.number(pattern.count));
            json_.set(group, "shapes", shapes);
            yyjson_mut_arr_append(list, group);
        }
        return list;
    }

    void add_identity() const {
        json_.set("path", json_.text(summary_.path));
        json_.set("packed", json_.truth(true));
        json_.set("bytes", json_.number(summary_.bytes));
        json_.set("base_model_name_or_path", raw("base_model_name_or_path"));
        json_.set("task_type", raw("task_type"));
        yyjson_mut_val* states = json_.object();
        for (const char* name : kFingerprints) {
            json_.set(states, name, json_.text(summary_.state_of(name)));
        }
        json_.set("fingerprints", states);
        json_.set("modules", texts(summary_.modules));
        json_.set("patterns", groups(adapters::patterns(summary_.modules, {})));
    }

    void add_contents() const {
        const NolaAdapter& adapter = summary_.adapter;
        const adapters::Config& config = adapter.config;
        json_.set("coefficients", json_.number(summary_.coefficients()));
        json_.set("whole_tensors", texts(adapter.whole_tensors));
        json_.set("whole_patterns",
                  groups(adapters::patterns(adapter.whole_tensors, summary_.whole_shapes)));
        json_.set("scaling", json_.real(config.scaling()));
        json_.set("r", json_.number(config.r));
        json_.set("num_basis_a", json_.number(config.num_basis_a));
        json_.set("num_basis_b", json_.number(config.num_basis_b));
        json_.set("basis", json_.text(summary_.basis_name()));
        json_.set("seed", json_.number(config.seed));
        json_.set("lora_alpha", raw("lora_alpha"));
        json_.set("coefficient_bits", raw("coefficient_bits"));
        json_.set("use_rslora", json_.truth(config.use_rslora));
        json_.set("beta_unit", config.beta_unit == 1 ? json_.real(1) : raw("beta_unit"));
        json_.set("fan_in_fan_out", json_.truth(config.fan_in_fan_out));
        json_.set("base_fingerprint", text_or_null(config.base_fingerprint));
    }

    yyjson_mut_val* parts() const {
        yyjson_mut_val* parts = json_.object();
        for (const auto& [module, part] : summary_.adapter.config.tensors) {
            std::string text = part.tensor;
            if (part.end != 0) {
                text += "[" + std::to_string(part.begin) + ":" + std::to_string(part.end) + "]";
            }
            json_.set(parts, module, text_or_null(text));
        }
        return parts;
    }

    yyjson_mut_val* config() const {
        const adapters::Config& config = summary_.adapter.config;
        yyjson_mut_val* fields = json_.object();
        for (const std::string_view name : adapters::bookkeeping_fields()) {
            if (yyjson_val* value = summary_.config(std::string(name).c_str())) {
                json_.set(fields, name, json_.copy(value));
            }
        }
        for (const char* name : {"peft_type", "nola_version", "r", "num_basis_a", "num_basis_b"}) {
            json_.set(fields, name, raw(name));
        }
        json_.set(fields, "basis", json_.text(summary_.basis_name()));
        json_.set(fields, "seed", json_.number(config.seed));
        json_.set(fields, "lora_alpha", raw("lora_alpha"));
        json_.set(fields, "use_rslora", json_.truth(config.use_rslora));
        json_.set(fields, "fan_in_fan_out", json_.truth(config.fan_in_fan_out));
        json_.set(fields, "bias", json_.text(config.bias));
        json_.set(fields, "modules_to_save",
                  config.modules_to_save.empty() ? json_.nothing() : texts(config.modules_to_save));
        add_optional(fields);
        return fields;
    }

    void add_optional(yyjson_mut_val* fields) const {
        const adapters::Config& config = summary_.adapter.config;
        if (config.beta_unit != 1) {
            json_.set(fields, "beta_unit", raw("beta_unit"));
        }
        if (config.coefficient_bits != 0) {
            json_.set(fields, "coefficient_bits", raw("coefficient_bits"));
        }
        for (const char* name : {"basis", "base", "modules", "shapes"}) {
            if (const std::string text = stated(config, name); !text.empty()) {
                json_.set(fields, std::string(name) + "_fingerprint", json_.text(text));
            }
        }
        if (config.exact_first_alpha) {
            json_.set(fields, "exact_first_alpha", json_.truth(true));
        }
        if (!config.tensors.empty()) {
            json_.set(fields, "tensors", parts());
        }
    }

    yyjson_mut_val* distribution(const Distribution& found) const {
        yyjson_mut_val* fields = json_.object();
        json_.set(fields, "count", json_.number(found.count));
        json_.set(fields, "zeros", json_.number(found.zeros));
        json_.set(fields, "mean", json_.real(found.mean));
        json_.set(fields, "std", json_.real(found.std));
        json_.set(fields, "low", json_.real(found.low));
        json_.set(fields, "high", json_.real(found.high));
        yyjson_mut_val* bins = json_.list();
        for (const std::uint64_t count : found.histogram) {
            yyjson_mut_arr_append(bins, json_.number(count));
        }
        json_.set(fields, "histogram", bins);
        return fields;
    }

    yyjson_mut_val* largest() const {
        yyjson_mut_val* modules = json_.object();
        for (const Module& module : summary_.adapter.modules) {
            yyjson_mut_val* entry = json_.object();
            json_.set(entry, "alpha", json_.real(largest_of(module.alpha)));
            json_.set(entry, "beta", json_.real(largest_of(module.beta)));
            yyjson_mut_obj_add(modules, json_.text(module.name), entry);
        }
        return modules;
    }

    const Summary& summary_;
    JsonOutput json_;
};

}  // namespace

Summary Summary::of(const std::string& given) {
    Summary found;
    found.given = given;
    found.path = given_path("path", given);
    const auto input = open_adapter(found.path);
    found.bytes = input->size();
    found.adapter = adapters::read_packed(input);
    found.about.emplace(adapters::read_about(input));
    const files::SafetensorsFile file(input);
    for (const std::string& name : found.adapter.whole_tensors) {
        found.whole_shapes.push_back(file.find("whole." + name)->shape);
    }
    for (const Module& module : found.adapter.modules) {
        found.modules.push_back(module.name);
    }
    found.alpha = Distribution::of(all_values(found.adapter, &Module::alpha));
    found.beta = Distribution::of(all_values(found.adapter, &Module::beta));
    return found;
}

yyjson_val* Summary::config(const char* name) const {
    return yyjson_obj_get(yyjson_obj_get(about->root(), "config"), name);
}

std::uint64_t Summary::coefficients() const {
    return adapter.modules.size() * (adapter.config.num_basis_a + adapter.config.num_basis_b);
}

const char* Summary::state_of(std::string_view fingerprint) const {
    const bool is_checked = fingerprint == "basis" || fingerprint == "modules";
    return stated(adapter.config, fingerprint).empty() ? "missing"
           : is_checked                                ? "checked"
                                                       : "unchecked";
}

const char* Summary::basis_name() const {
    return adapter.config.basis == Basis::kUniform ? "uniform" : "rademacher";
}

double largest_of(const std::vector<float>& values) {
    float most = 0;
    for (const float value : values) {
        most = std::max(most, std::fabs(value));
    }
    return static_cast<double>(most);
}

void print_json(const Summary& summary, bool lists_modules) {
    Printer(summary).print(lists_modules);
}

}  // namespace nola::program
