// `nola merge`.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>

#include "adapter.h"
#include "adapters/packed.h"
#include "commands.h"
#include "files/failure.h"
#include "files/output.h"
#include "files/paths.h"
#include "files/printable.h"
#include "layout.h"
#include "merge/plan.h"
#include "merge/write.h"
#include "output.h"

namespace nola::program {

namespace {

using files::Checkpoint;
using files::Failure;
using files::OutputFailure;
using files::printable;
using merging::Plan;
using merging::WeightedAdapter;

constexpr std::string_view kFiles[] = {".safetensors", ".gguf", ".nola", ".bin",
                                       ".pt",          ".pth",  ".json"};

// A path and its extension, with the dot.
std::pair<std::string, std::string> split_extension(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::size_t begin = slash == path.npos ? 0 : slash + 1;
    const std::size_t name = std::min(path.find_first_not_of('.', begin), path.size());
    const std::size_t dot = path.rfind('.');
    return dot == path.npos || dot < name ? std::pair(path, std::string())
                                          : std::pair(path.substr(0, dot), path.substr(dot));
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](char c) {
        return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    return text;
}

bool is_of_file(const std::string& extension) {
    return std::find(std::begin(kFiles), std::end(kFiles), lower(extension)) != std::end(kFiles);
}

// A path as a shell wants it.
std::string quoted(const std::string& path) {
    constexpr std::string_view kPlain =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-";
    std::string text = path;
    if (path.empty() || path.find_first_not_of(kPlain) != path.npos) {
        text = "'";
        for (const char c : path) {
            text += c == '\'' ? "'\"'\"'" : std::string(1, c);
        }
        text += "'";
    }
    return printable(text, 240);
}

void check_folder_name(const std::string& output) {
    const auto [stem, extension] = split_extension(output);
    if (is_of_file(extension) && !files::is_folder(output)) {
        throw OutputFailure(output, "the output is a folder, like BASE; write -o " + quoted(stem));
    }
}

void check_file_name(const std::string& base, const std::string& output) {
    constexpr std::string_view kWanted = ".safetensors";
    const std::string what = "the output is a file, like BASE; write -o ";
    if (files::is_folder(output) || output.back() == '/') {
        const std::string name = split_extension(files::name_of(base)).first + std::string(kWanted);
        throw OutputFailure(output,
                            what + quoted(output + (output.back() == '/' ? "" : "/") + name));
    }
    const auto [stem, extension] = split_extension(output);
    if (extension != kWanted) {
        throw OutputFailure(
            output, what + quoted((is_of_file(extension) ? stem : output) + std::string(kWanted)));
    }
}

// Refuses names of outputs that say something else than what is written.
void check_output_name(const std::string& base, const std::string& output) {
    if (output == "-") {
        throw OutputFailure(output,
                            "results cannot be written to standard output, because an output "
                            "appears only when it is complete; write -o NAME");
    }
    if (const std::string special = files::special_file(output); !special.empty()) {
        throw OutputFailure(output, special + ", and never replaced; choose another name");
    }
    if (files::is_folder(base)) {
        check_folder_name(output);
    } else if (files::is_here(base)) {
        try {
            check_file_name(base, output);
        } catch (const OutputFailure&) {
            const Checkpoint readable(base);  // else what to call the output is the wrong advice
            throw;
        }
    }
}

bool is_gguf(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char begin[4] = {};
    const bool found = fd >= 0 && ::pread(fd, begin, sizeof begin, 0) == sizeof begin &&
                       std::string_view(begin, sizeof begin) == "GGUF";
    if (fd >= 0) {
        ::close(fd);
    }
    return found;
}

// The SHA-256 that is expected; empty if any will do.
std::string expected_hash(const Arguments& arguments) {
    if (!arguments.has("--expect")) {
        return "";
    }
    const std::string given = arguments.value("--expect");
    std::string text = lower(given);
    if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != text.npos) {
        throw Failure("", "expect",
                      printable(given, 80) + " is not a SHA-256 of 64 hexadecimal digits",
                      "ArgumentError");
    }
    return text;
}

// Whether a text is a decimal number, and nothing else that strtod would take.
bool is_decimal(std::string_view text) {
    const auto skip_digits = [&] {
        const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
        text.remove_prefix(count);
        return count;
    };
    const auto skip = [&](std::string_view signs) {
        const bool found = !text.empty() && signs.find(text[0]) != signs.npos;
        text.remove_prefix(found ? 1 : 0);
        return found;
    };
    skip("+-");
    std::size_t digits = skip_digits();
    if (skip(".")) {
        digits += skip_digits();
    }
    if (digits != 0 && skip("eE")) {
        skip("+-");
        digits = skip_digits();
    }
    return digits != 0 && text.empty();
}

// Where an adapter is, and the weight of its factors: PATH or PATH=WEIGHT, where a path that is
// there wins.
std::pair<std::string, double> parse_adapter(const std::string& text) {
    const std::size_t sign = text.rfind('=');
    if (sign == text.npos || files::status_of(text)) {
        return {given_path("adapter", text), 1.0};
    }
    const std::string weight = text.substr(sign + 1);
    if (!is_decimal(weight)) {
        throw Failure("", text, "'" + printable(weight) + "' is not a weight such as 0.5",
                      "ArgumentError");
    }
    return {given_path("adapter", text.substr(0, sign)), std::strtod(weight.c_str(), nullptr)};
}

// Refuses a weight that is too large, and warns of one that does not do what was meant.
void check_weight(const WeightedAdapter& adapter) {
    const double scaling = adapter.adapter.config.scaling();
    const double product = adapter.weight * scaling;
    if (!(std::fabs(product) <= static_cast<double>(std::numeric_limits<float>::max()))) {
        throw Failure(adapter.path, "weight",
                      general(adapter.weight, 17) + " times the adapter's scaling " +
                          general(scaling) + " is not a finite float32",
                      "ArgumentError");
    }
    if (static_cast<float>(product) == 0) {
        warn("warning: " + printable(adapter.path, 240) + ": weight: " +
             (adapter.weight == 0 ? "is 0"
                                  : general(adapter.weight, 17) + " times the scaling " +
                                        general(scaling) + " is 0 in float32") +
             ", so its factors add nothing to any weight; correct that, or leave the adapter out");
    }
}

std::vector<WeightedAdapter> load_adapters(
    const std::vector<std::pair<std::string, double>>& given) {
    std::vector<WeightedAdapter> adapters;
    for (const auto& [path, weight] : given) {
        adapters.push_back({adapters::read_packed(open_adapter(path)), path, weight});
        check_weight(adapters.back());
    }
    return adapters;
}

bool records_bases(const Plan& plan) {
    return std::all_of(plan.adapters().begin(), plan.adapters().end(), [](const auto& adapter) {
        return !adapter.adapter.config.base_fingerprint.empty();
    });
}

std::string listed(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return printable(text, 500);
}

struct Report {
    std::string output;
    const Plan& plan;
    Checkpoint& base;
    double seconds = 0;
    bool checks_base = true;
    std::string note;         // about what the adapter expects
    std::string expected_of;  // the base of which it expects this result, if it does

    void print_json() const {
        const JsonOutput json;
        const auto names = [&](const std::vector<std::string>& texts) {
            yyjson_mut_val* list = json.list();
            for (const std::string& text : texts) {
                yyjson_mut_arr_append(list, json.text(text));
            }
            return list;
        };
        json.set("output", json.text(output));
        json.set("tensors", json.number(base.tensors().size()));
        json.set("merged", json.number(plan.merged()));
        json.set("replaced", json.number(0));
        json.set("added", json.number(0));
        json.set("bytes", json.number(base.bytes()));
        json.set("seconds", json.real(seconds));
        json.set("carried_weights", names(base.companions().weights));
        json.set("left_behind", names(base.companions().left));
        json.set("notes", names(note.empty() ? std::vector<std::string>() : std::vector{note}));
        json.set("base_checked",
                 json.truth(!expected_of.empty() || (checks_base && records_bases(plan))));
        json.set("expected_of", expected_of.empty() ? json.nothing() : json.text(expected_of));
        json.print();
    }

    void print() const {
        char time[32];
        std::snprintf(time, sizeof time, "%.2f", seconds);
        const auto bytes = static_cast<double>(base.bytes());
        say(printable(output, 240) + ": " + std::to_string(plan.merged()) + " of " +
            std::to_string(base.tensors().size()) + " tensors merged, " + human_bytes(bytes) +
            " in " + time + " s " + whole("(" + human_bytes(bytes / seconds) + "/s)"));
        if (!expected_of.empty()) {
            say("  the result is the one that the adapter expects of " +
                printable(expected_of, 240));
        }
        if (!note.empty()) {
            say("  note: " + printable(note, 400));
        }
        if (!base.companions().weights.empty()) {
            say("  copied unchanged: " + listed(base.companions().weights));
        }
        if (!base.companions().left.empty()) {
            say("  not copied: " + listed(base.companions().left));
        }
        print_base();
    }

    void print_base() const {
        if (!expected_of.empty()) {
            return;
        }
        const auto& adapters = plan.adapters();
        const auto unchecked =
            std::count_if(adapters.begin(), adapters.end(), [](const WeightedAdapter& adapter) {
                return adapter.adapter.config.base_fingerprint.empty();
            });
        if (!checks_base) {
            say("  the base was not checked: --no-check-base");
        } else if (unchecked != 0) {
            // One report, whatever the number of adapters.
            say("  the base was not checked: the adapter records no fingerprint of it");
        }
    }
};

// Paths of adapters and their weights, of which each must be there.
std::vector<std::pair<std::string, double>> given_adapters(const Arguments& arguments) {
    std::vector<std::pair<std::string, double>> given;
    for (std::size_t i = 1; i < arguments.places().size(); ++i) {
        given.push_back(parse_adapter(arguments.places()[i]));
    }
    for (const auto& [path, weight] : given) {
        if (!files::is_here(path)) {
            throw files::AdapterFailure(path, "", "does not exist");
        }
    }
    return given;
}

int run(const Arguments& arguments) {
    const int threads = arguments.threads();
    if (!arguments.has("--output")) {
        throw UsageFailure("--output", "Missing option '-o' / '--output'.",
                           "usage: " + usage_of(merge_command()) + "; see nola merge --help");
    }
    const std::string expected = expected_hash(arguments);
    const std::string output = given_path("output", arguments.value("--output"));
    const std::string base_path = given_path("base", arguments.places()[0]);
    if (is_gguf(base_path)) {
        throw files::CheckpointFailure(base_path, "",
                                       "is a GGUF file, into which this program does not merge; "
                                       "use nola-edge merge of the Python package");
    }
    check_output_name(base_path, arguments.value("--output"));
    const auto given = given_adapters(arguments);
    if (!files::is_here(base_path)) {
        throw files::CheckpointFailure(base_path, "", "does not exist");
    }
    const auto begin = std::chrono::steady_clock::now();
    Checkpoint base(base_path);
    const std::vector<WeightedAdapter> adapters = load_adapters(given);
    const bool checks_base = arguments.value("--check-base") != "--no-check-base";
    const Plan plan(base, adapters, checks_base);
    const bool checks_result = arguments.value("--check-result") != "--no-check-result";
    const merging::Expectation expectation = merging::expectation(plan, expected, checks_result);
    const std::string expected_of =
        merging::write_result(base, plan, {output, arguments.has("--force"), threads, expectation});
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    const Report report{output,           plan,       base, taken.count(), checks_base,
                        expectation.note, expected_of};
    if (arguments.has("--json")) {
        report.print_json();
    } else if (!arguments.has("--quiet")) {
        report.print();
    }
    return 0;
}

}  // namespace

Command merge_command() {
    return {
        "merge",
        "BASE ADAPTER...",
        "Merge adapters into a checkpoint and write the result.",
        "Merge one or more ADAPTERs into BASE and write the result.\n\n"
        "BASE is a safetensors file or a Hugging Face folder; the output has the same layout, and "
        "the same bytes as nola-edge merge gives it. An ADAPTER is a packed file (nola-edge pack); "
        "each may have a weight: ADAPTER=0.5. Several are summed in fp32, in the order given, "
        "which is part of the bits, and rounded once. At every moment the output is either absent "
        "or complete.",
        {
            {"--output", "-o", "PATH", "File or folder to write.  [required]"},
            {"--expect", "", "HASH",
             "Refuse a result with another SHA-256 than this one (see nola hash), before it is in "
             "place."},
            {"--force", "", "", "Replace an existing output."},
            {"--check-base", "--no-check-base", "",
             "Refuse a base that the adapter was not trained on, or do not.  [default: "
             "check-base]"},
            {"--check-result", "--no-check-result", "",
             "Refuse a result that the adapter, which says what it gives with this base, does not "
             "expect, or do not.  [default: check-result]"},
            kThreads,
            kJson,
            kQuiet,
            {"--each", "", "", ""},
            {"--shard", "", "I/N", ""},
            {"--skip-existing", "", "", ""},
            {"--dtype", "--outtype", "TYPE", ""},
            {"--rounding", "", "NAME", ""},
            {"--drawn-on", "", "DEVICE", ""},
            {"--lora-alpha", "", "ALPHA", ""},
            {"--moe-layout", "", "NAME", ""},
            {"--revision", "", "NAME", ""},
            {"--rename", "", "NEW=OLD", ""},
        },
        "nola merge ./Llama-3-8B french.nola -o ./merged",
        run,
    };
}

}  // namespace nola::program
