// `nola inspect`.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "adapter.h"
#include "adapters/packed.h"
#include "adapters/statistics.h"
#include "commands.h"
#include "files/failure.h"
#include "files/paths.h"
#include "files/printable.h"
#include "files/safetensors.h"
#include "layout.h"
#include "output.h"

namespace nola::program {

namespace {

using adapters::Distribution;
using adapters::Module;
using adapters::NolaAdapter;
using adapters::Pattern;
using adapters::TensorShape;
using files::printable;
using Row = std::pair<std::string, std::string>;
using Rows = std::vector<Row>;

constexpr std::size_t kLabel = 14;
constexpr std::size_t kListed = 20;
constexpr const char* kFingerprints[] = {"basis", "modules", "shapes", "base"};

// Everything that is said of an adapter.
struct Summary {
    std::string given;
    std::string path;
    std::uint64_t bytes = 0;
    NolaAdapter adapter;
    std::optional<files::Json> about;
    std::vector<std::string> modules;
    std::vector<TensorShape> whole_shapes;
    Distribution alpha;
    Distribution beta;

    yyjson_val* config(const char* name) const {
        return yyjson_obj_get(yyjson_obj_get(about->root(), "config"), name);
    }
    std::uint64_t coefficients() const {
        return adapter.modules.size() * (adapter.config.num_basis_a + adapter.config.num_basis_b);
    }
};

std::vector<float> all_values(const NolaAdapter& adapter, std::vector<float> Module::* factor) {
    std::vector<float> values;
    for (const Module& module : adapter.modules) {
        const std::vector<float>& own = module.*factor;
        values.insert(values.end(), own.begin(), own.end());
    }
    return values;
}

Summary summary_of(const std::string& given) {
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

std::string stated(const adapters::Config& config, std::string_view fingerprint) {
    return fingerprint == "basis"     ? config.basis_fingerprint
           : fingerprint == "modules" ? config.modules_fingerprint
           : fingerprint == "shapes"  ? config.shapes_fingerprint
                                      : config.base_fingerprint;
}

// "missing", or whether it was checked.
std::string state_of(const Summary& summary, std::string_view fingerprint) {
    const bool is_checked = fingerprint == "basis" || fingerprint == "modules";
    return stated(summary.adapter.config, fingerprint).empty() ? "missing"
           : is_checked                                        ? "checked"
                                                               : "unchecked";
}

const char* basis_name(const adapters::Config& config) {
    return config.basis == Basis::kUniform ? "uniform" : "rademacher";
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
            json_.set(states, name, json_.text(state_of(summary_, name)));
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
        json_.set("basis", json_.text(basis_name(config)));
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
        json_.set(fields, "basis", json_.text(basis_name(config)));
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

    yyjson_mut_val* largest() const;

    const Summary& summary_;
    JsonOutput json_;
};

double largest_of(const std::vector<float>& values) {
    float most = 0;
    for (const float value : values) {
        most = std::max(most, std::fabs(value));
    }
    return static_cast<double>(most);
}

yyjson_mut_val* Printer::largest() const {
    yyjson_mut_val* modules = json_.object();
    for (const Module& module : summary_.adapter.modules) {
        yyjson_mut_val* entry = json_.object();
        json_.set(entry, "alpha", json_.real(largest_of(module.alpha)));
        json_.set(entry, "beta", json_.real(largest_of(module.beta)));
        yyjson_mut_obj_add(modules, json_.text(module.name), entry);
    }
    return modules;
}

std::string labelled(const Rows& rows) {
    std::string text;
    for (const auto& [label, value] : rows) {
        std::string head = label;
        std::size_t begin = 0;
        while (begin <= value.size()) {
            const std::size_t end = std::min(value.find('\n', begin), value.size());
            for (const std::string& line :
                 wrap(value.substr(begin, end - begin), width() - kLabel)) {
                text += padded(head, kLabel) + line + "\n";
                head.clear();
            }
            begin = end + 1;
        }
    }
    return text;
}

// Names and what is said of each; a name that leaves no room has a line of its own.
std::string table(const Rows& rows, std::size_t most) {
    const std::size_t shown = std::min(rows.size(), most);
    std::size_t said = 0;
    for (std::size_t i = 0; i < shown; ++i) {
        said = std::max(said, length(rows[i].second));
    }
    std::size_t column = 0;
    for (std::size_t i = 0; i < shown; ++i) {
        const std::size_t size = length(rows[i].first);
        column = size + said + 4 <= width() ? std::max(column, size) : column;
    }
    std::string text;
    for (std::size_t i = 0; i < shown; ++i) {
        const auto& [name, value] = rows[i];
        if (length(name) <= column) {
            text += "  " + padded(name, column) + "  " + value + "\n";
            continue;
        }
        for (const std::string& line : wrap(name, width() - 2)) {
            text += "  " + line + "\n";
        }
        for (const std::string& line : wrap(value, width() - 6)) {
            text += "      " + line + "\n";
        }
    }
    if (shown < rows.size()) {
        text += "  and " + std::to_string(rows.size() - shown) + " more: --json has all\n";
    }
    return text;
}

std::string said_of(const TensorShape& shape) {
    std::string text;
    for (const std::uint64_t size : shape) {
        text += (text.empty() ? "" : " x ") + std::to_string(size);
    }
    return text;
}

Rows pattern_rows(const std::vector<Pattern>& patterns) {
    Rows rows;
    for (const Pattern& pattern : patterns) {
        std::string shapes;
        for (const auto& [shape, count] : pattern.shapes) {
            shapes += (shapes.empty() ? "" : ", ") + std::to_string(count) + " x (" +
                      said_of(shape) + ")";
        }
        rows.emplace_back(printable(pattern.name, 240),
                          shapes.empty() ? std::to_string(pattern.count) : shapes);
    }
    return rows;
}

std::string recorded(const Summary& summary, const char* field) {
    yyjson_val* value = summary.config(field);
    const std::string text =
        yyjson_is_str(value) ? std::string(files::text_of(value)) : std::string();
    return printable(text.empty() ? "not recorded" : text, 400);
}

std::string fingerprints(const Summary& summary) {
    static constexpr std::pair<const char*, const char*> kSaid[] = {
        {"checked", "checked"},
        {"unchecked", "not checked without --base"},
        {"missing", "not recorded"}};
    std::vector<std::pair<std::string, std::string>> groups;  // in the order of their first
    for (const char* name : kFingerprints) {
        const std::string state = state_of(summary, name);
        const auto place = std::find_if(groups.begin(), groups.end(),
                                        [&](const auto& group) { return group.first == state; });
        if (place == groups.end()) {
            groups.emplace_back(state, name);
        } else {
            place->second += std::string(", ") + name;
        }
    }
    std::string text;
    for (const auto& [state, names] : groups) {
        for (const auto& [known, said] : kSaid) {
            if (state == known) {
                text += (text.empty() ? "" : "; ") + whole(std::string(said) + ": " + names);
            }
        }
    }
    return text;
}

std::string described(const Distribution& found) {
    char numbers[128];
    std::snprintf(numbers, sizeof numbers, "mean %.2g, std %.2g, ", found.mean, found.std);
    const std::string zeros = found.zeros == 0   ? "no zeros"
                              : found.zeros == 1 ? "1 zero"
                                                 : grouped(found.zeros) + " zeros";
    char low[32];
    char high[32];
    std::snprintf(low, sizeof low, "%+.3g ", found.low);
    std::snprintf(high, sizeof high, " %+.3g", found.high);
    return whole(low + found.picture() + high) + "  " + whole(numbers + zeros);
}

std::string stored_size(const Summary& summary) {
    const auto count = static_cast<double>(summary.coefficients());
    const int bits = summary.adapter.config.coefficient_bits;
    return bits == 0 ? human_bytes(4 * count) + " as F32"
                     : human_bytes(count * bits / 8) + " in " + std::to_string(bits) + " bits";
}

Rows contents(const Summary& summary) {
    const adapters::Config& config = summary.adapter.config;
    Rows rows;
    rows.emplace_back("factors", "rank " + std::to_string(config.r) + ", " +
                                     std::to_string(config.num_basis_a) + " + " +
                                     std::to_string(config.num_basis_b) + " coefficients each, " +
                                     basis_name(config) + " basis, " +
                                     whole("seed " + std::to_string(config.seed)));
    const std::string rule = config.use_rslora ? "lora_alpha / sqrt(r)" : "lora_alpha / r";
    const std::string unit =
        config.beta_unit == 1 ? "" : " x beta_unit " + general(config.beta_unit);
    rows.emplace_back("scaling", general(config.scaling()) + " = " + rule + unit);
    if (config.fan_in_fan_out) {
        rows.emplace_back("weights", "stored as (in, out): fan_in_fan_out");
    }
    rows.emplace_back("coefficients",
                      grouped(summary.coefficients()) + " (" + stored_size(summary) + ")");
    rows.emplace_back("alpha", described(summary.alpha));
    rows.emplace_back("beta", described(summary.beta));
    if (!summary.adapter.whole_tensors.empty()) {
        rows.emplace_back("whole tensors", std::to_string(summary.adapter.whole_tensors.size()));
    }
    return rows;
}

Rows module_rows(const Summary& summary) {
    Rows rows;
    for (const Module& module : summary.adapter.modules) {
        rows.emplace_back(printable(module.name, 240),
                          "|alpha| " + general(largest_of(module.alpha), 3) + ", |beta| " +
                              general(largest_of(module.beta), 3) + " at most");
    }
    return rows;
}

// The bases of which the adapter says what merging gives.
std::string expected(const Summary& summary) {
    std::string named;
    for (const adapters::ExpectedResult& result : summary.adapter.expected) {
        named += (named.empty() ? "" : ", ") +
                 whole(printable(result.name, 240) + " (" + result.kind + ")");
    }
    return "known results of merging into " + named;
}

void show(const Summary& summary, bool lists_modules) {
    const std::vector<Pattern> groups = adapters::patterns(summary.modules, {});
    const std::size_t count = summary.modules.size();
    const bool has_kinds = 1 < groups.size() && groups.size() < count;
    std::vector<std::pair<std::string, std::string>> rows = {
        {"adapter", printable(summary.given, 400) + " (" +
                        human_bytes(static_cast<double>(summary.bytes)) + ", packed)"},
        {"base", recorded(summary, "base_model_name_or_path")},
        {"task", recorded(summary, "task_type")},
        {"fingerprints", fingerprints(summary)},
    };
    if (!summary.adapter.expected.empty()) {
        rows.emplace_back("expects", expected(summary));
    }
    rows.emplace_back("modules",
                      std::to_string(count) +
                          (has_kinds ? " in " + std::to_string(groups.size()) + " patterns" : ""));
    print(labelled(rows));
    print(table(pattern_rows(groups), kListed));
    print(labelled(contents(summary)));
    print(
        table(pattern_rows(adapters::patterns(summary.adapter.whole_tensors, summary.whole_shapes)),
              kListed));
    if (lists_modules) {
        print("\n" + table(module_rows(summary), count));
    }
}

int run(const Arguments& arguments) {
    const Summary summary = summary_of(arguments.places()[0]);
    const bool lists_modules = arguments.has("--modules");
    if (arguments.has("--json")) {
        Printer(summary).print(lists_modules);
    } else if (!arguments.has("--quiet")) {
        show(summary, lists_modules);
    }
    return 0;
}

}  // namespace

Command inspect_command() {
    return {
        "inspect",
        "ADAPTER",
        "Show what an adapter holds.",
        "Show what ADAPTER, a packed file, holds: modules, rank, coefficients and their "
        "distribution, bytes.\n\n"
        "The adapter is checked completely.",
        {
            {"--modules", "", "", "List every module, also in JSON."},
            kJson,
            kQuiet,
            {"--base", "", "PATH", ""},
            {"--drawn-on", "", "DEVICE", ""},
            {"--lora-alpha", "", "ALPHA", ""},
            {"--moe-layout", "", "NAME", ""},
            {"--revision", "", "NAME", ""},
            {"--rename", "", "NEW=OLD", ""},
            {"--check-base", "--no-check-base", "", ""},
        },
        "nola inspect adapter.nola",
        run,
    };
}

}  // namespace nola::program
