#include "config.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "files/failure.h"
#include "files/json.h"
#include "tensor_parts.h"

namespace nola::adapters {

namespace {

using Failure = files::AdapterFailure;

constexpr std::uint64_t kVersion = 1;
constexpr std::uint64_t kMaxRank = 1U << 16;
constexpr std::uint64_t kMaxNumBasis = 1U << 20;

constexpr std::string_view kFields[] = {
    "peft_type",
    "nola_version",
    "r",
    "num_basis_a",
    "num_basis_b",
    "seed",
    "lora_alpha",
    "beta_unit",
    "basis",
    "use_rslora",
    "fan_in_fan_out",
    "exact_first_alpha",
    "coefficient_bits",
    "bias",
    "modules_to_save",
    "tensors",
    "basis_fingerprint",
    "base_fingerprint",
    "modules_fingerprint",
    "shapes_fingerprint",
};

// Reads one field after another, and names it in what it refuses.
class Fields {
public:
    Fields(yyjson_val* object, std::string_view file) : object_(object), file_(file) {}

    // Null if the field is missing or null.
    yyjson_val* get(const char* name) const {
        yyjson_val* value = yyjson_obj_get(object_, name);
        return yyjson_is_null(value) ? nullptr : value;
    }

    Failure refusal(const char* name, std::string_view requirement) const {
        return {file_, name,
                "is " + files::shown(get(name)) + ", must be " + std::string(requirement)};
    }

    void require(const char* name) const {
        if (yyjson_obj_get(object_, name) == nullptr) {
            throw Failure(file_, name, "is missing");
        }
    }

    std::uint64_t integer(const char* name, std::uint64_t low, std::uint64_t high) const {
        require(name);
        yyjson_val* value = get(name);
        const std::uint64_t number = yyjson_get_uint(value);
        if (!yyjson_is_uint(value) || number < low || number > high) {
            throw refusal(name,
                          "an integer in " + std::to_string(low) + ".." + std::to_string(high));
        }
        return number;
    }

    double positive(const char* name, double most, const char* most_text) const {
        yyjson_val* value = get(name);
        // An integer of more than 64 bits is left as its digits.
        const double number = yyjson_is_raw(value) ? std::strtod(yyjson_get_raw(value), nullptr)
                                                   : yyjson_get_num(value);
        const bool is_number = yyjson_is_num(value) || yyjson_is_raw(value);
        if (!is_number || !(number > 0) || number > most) {
            throw refusal(name, std::string("a positive number up to ") + most_text);
        }
        return number;
    }

    bool flag(const char* name) const {
        yyjson_val* value = get(name);
        if (value != nullptr && !yyjson_is_bool(value)) {
            throw refusal(name, "true or false");
        }
        return yyjson_get_bool(value);
    }

    std::string text(const char* name) const {
        yyjson_val* value = get(name);
        if (value != nullptr && !yyjson_is_str(value)) {
            throw refusal(name, "a string");
        }
        if (value != nullptr && yyjson_get_len(value) == 0) {
            throw refusal(name, "a fingerprint");  // which no basis, base or module has
        }
        return value == nullptr ? "" : std::string(files::text_of(value));
    }

    std::string one_of(const char* name, std::initializer_list<const char*> choices) const {
        if (get(name) == nullptr) {
            return *choices.begin();
        }
        std::string listed;
        for (const char* choice : choices) {
            if (yyjson_equals_str(get(name), choice)) {
                return choice;
            }
            listed += (listed.empty() ? "" : ", ") + std::string(choice);
        }
        throw refusal(name, "one of " + listed);
    }

private:
    yyjson_val* object_;
    std::string_view file_;
};

void check_kind(const Fields& fields, std::string_view file) {
    const std::string advice = "; this is not a NOLA adapter that nola-edge can read";
    const auto expect = [&](const char* name, bool holds, const std::string& wanted) {
        if (!holds) {
            yyjson_val* value = fields.get(name);
            const std::string found = value == nullptr ? "is missing" : "is " + files::shown(value);
            throw Failure(file, name, found + ", must be " + wanted + advice);
        }
    };
    expect("peft_type", yyjson_equals_str(fields.get("peft_type"), "NOLA"), "'NOLA'");
    yyjson_val* version = fields.get("nola_version");
    if (yyjson_is_uint(version) && yyjson_get_uint(version) > kVersion) {
        throw Failure(file, "nola_version",
                      "is " + files::shown(version) + ", this program reads 1; upgrade nola-edge");
    }
    expect("nola_version", yyjson_is_uint(version) && yyjson_get_uint(version) == kVersion, "1");
}

bool is_off(yyjson_val* value) {
    return yyjson_is_null(value) || yyjson_is_false(value) ||
           (yyjson_is_str(value) && yyjson_get_len(value) == 0) ||
           (yyjson_is_ctn(value) && yyjson_get_len(value) == 0);
}

void refuse_unknown(yyjson_val* object, std::string_view file) {
    files::for_each_member(object, [&](std::string_view name, yyjson_val* value) {
        const auto knows = [&](const auto& names) {
            return std::find(std::begin(names), std::end(names), name) != std::end(names);
        };
        if (!knows(kFields) && !knows(bookkeeping_fields()) && !is_off(value)) {
            throw Failure(file, name,
                          "is " + files::shown(value) +
                              ": not understood here, and it may change the weights; upgrade "
                              "nola-edge, or remove the field if you know that it does not matter");
        }
    });
}

int bits_of(const Fields& fields) {
    yyjson_val* value = fields.get("coefficient_bits");
    const std::uint64_t bits = yyjson_get_uint(value);
    if (value != nullptr && (!yyjson_is_uint(value) || (bits != 3 && bits != 4 && bits != 8))) {
        throw fields.refusal("coefficient_bits", "one of 3, 4, 8");
    }
    return static_cast<int>(bits);
}

std::vector<std::string> saved_modules(const Fields& fields) {
    yyjson_val* list = fields.get("modules_to_save");
    std::vector<std::string> modules;
    bool valid = list == nullptr || yyjson_is_arr(list);
    files::for_each_item(list, [&](yyjson_val* name) {
        valid = valid && yyjson_is_str(name);
        modules.emplace_back(files::text_of(name));
    });
    if (!valid) {
        throw fields.refusal("modules_to_save", "a list of module names");
    }
    return modules;
}

}  // namespace

const std::vector<std::string_view>& bookkeeping_fields() {
    static const std::vector<std::string_view> fields = {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "init_weights",
        "layers_pattern",
        "layers_to_transform",
        "module_aliases",
        "nola_dropout",
        "peft_version",
        "revision",
        "start",
        "target_modules",
        "task_type",
    };
    return fields;
}

double Config::scaling() const {
    const auto rank = static_cast<double>(r);
    return lora_alpha / (use_rslora ? std::sqrt(rank) : rank) * beta_unit;
}

Config parse_config(yyjson_val* object, std::string_view file) {
    const Fields fields(object, file);
    check_kind(fields, file);
    Config config;
    config.r = fields.integer("r", 1, kMaxRank);
    config.num_basis_a = fields.integer("num_basis_a", 1, kMaxNumBasis);
    config.num_basis_b = fields.integer("num_basis_b", 1, kMaxNumBasis);
    config.seed = fields.integer("seed", 0, kMaxSeed);
    fields.require("lora_alpha");
    config.lora_alpha = fields.positive("lora_alpha", 1e30, "1e30");
    if (fields.get("beta_unit") != nullptr) {
        config.beta_unit = fields.positive("beta_unit", 1e6, "1e6");
    }
    const bool is_uniform = fields.one_of("basis", {"rademacher", "uniform"}) == "uniform";
    config.basis = is_uniform ? Basis::kUniform : Basis::kRademacher;
    config.use_rslora = fields.flag("use_rslora");
    config.fan_in_fan_out = fields.flag("fan_in_fan_out");
    config.exact_first_alpha = fields.flag("exact_first_alpha");
    config.coefficient_bits = bits_of(fields);
    if (config.exact_first_alpha && config.coefficient_bits == 0) {
        throw fields.refusal("exact_first_alpha", "false without coefficient_bits");
    }
    config.bias = fields.one_of("bias", {"none", "all", "nola_only"});
    config.modules_to_save = saved_modules(fields);
    config.basis_fingerprint = fields.text("basis_fingerprint");
    config.base_fingerprint = fields.text("base_fingerprint");
    config.modules_fingerprint = fields.text("modules_fingerprint");
    config.shapes_fingerprint = fields.text("shapes_fingerprint");
    config.tensors = parse_parts(fields.get("tensors"), file);
    refuse_unknown(object, file);
    return config;
}

}  // namespace nola::adapters
