// `nola inspect`.
#include <algorithm>
#include <cstdio>

#include "commands.h"
#include "files/printable.h"
#include "files/safetensors.h"
#include "inspect_summary.h"
#include "layout.h"
#include "output.h"

namespace nola::program {

namespace {

using adapters::Distribution;
using adapters::Module;
using adapters::Pattern;
using files::printable;
using Rows = std::vector<std::pair<std::string, std::string>>;

constexpr std::size_t kLabel = 14;
constexpr std::size_t kListed = 20;

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
        said = std::max(said, files::characters(rows[i].second));
    }
    std::size_t column = 0;
    for (std::size_t i = 0; i < shown; ++i) {
        const std::size_t size = files::characters(rows[i].first);
        column = size + said + 4 <= width() ? std::max(column, size) : column;
    }
    std::string text;
    for (std::size_t i = 0; i < shown; ++i) {
        const auto& [name, value] = rows[i];
        if (files::characters(name) <= column) {
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

Rows pattern_rows(const std::vector<Pattern>& patterns) {
    Rows rows;
    for (const Pattern& pattern : patterns) {
        std::string shapes;
        for (const auto& [shape, count] : pattern.shapes) {
            shapes += (shapes.empty() ? "" : ", ") + std::to_string(count) + " x (" +
                      files::joined(shape, " x ") + ")";
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
        const std::string state = summary.state_of(name);
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
                                     summary.basis_name() + " basis, " +
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
    const Summary summary = Summary::of(arguments.places()[0]);
    const bool lists_modules = arguments.has("--modules");
    if (arguments.has("--json")) {
        print_json(summary, lists_modules);
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
