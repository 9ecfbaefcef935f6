#include "merge_gguf.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "adapter.h"
#include "files/failure.h"
#include "files/printable.h"
#include "gguf/write.h"
#include "layout.h"
#include "output.h"
#include "output_names.h"

namespace nola::program {

namespace {

using files::printable;

// Below this part of the change a merge is warned of.
constexpr double kLittle = 0.9;
constexpr std::size_t kWorst = 3;

std::string percent(double part) {
    return fixed(part * 100, 0) + "%";
}

struct Report {
    std::string output;
    const gguf::Plan& plan;
    const gguf::Written& written;
    double seconds;
    std::string note;  // about what the adapter expects

    void print_json() const;
    void print() const;
    // Says on stderr, however little is said otherwise, that little is left of the change.
    void warn_of_loss() const;

private:
    std::vector<std::string> notes() const {
        std::vector<std::string> all;
        if (written.expected_of.empty()) {
            all.emplace_back(kGgufNote);
        }
        if (!note.empty()) {
            all.push_back(note);
        }
        return all;
    }

    std::set<std::string> types() const {
        std::set<std::string> found;
        for (const files::TensorInfo& tensor : plan.base().tensors()) {
            if (plan.segments(tensor.name) != nullptr) {
                found.insert(tensor.type);
            }
        }
        return found;
    }

    void print_survival() const;
};

void Report::print_json() const {
    const JsonOutput json;
    const auto list = [&](const auto& texts) {
        yyjson_mut_val* values = json.list();
        for (const std::string& text : texts) {
            yyjson_mut_arr_append(values, json.text(text));
        }
        return values;
    };
    const auto real = [&](const std::optional<double>& value) {
        return value ? json.real(*value) : json.nothing();
    };
    const auto survived = [&](const ChangeSums& sums) {
        yyjson_mut_val* fields = json.object();
        json.set(fields, "part", real(gguf::part_of(sums)));
        json.set(fields, "noise", real(gguf::noise_of(sums)));
        return fields;
    };
    json.set("output", json.text(output));
    json.set("tensors", json.number(plan.base().tensors().size()));
    json.set("merged", json.number(plan.merged()));
    json.set("bytes", json.number(written.bytes));
    json.set("seconds", json.real(seconds));
    json.set("types", list(types()));
    json.set("rounding", json.text("nearest"));
    yyjson_mut_val* each = json.object();
    for (const auto& [tensor, sums] : written.survival) {
        json.set(each, tensor, survived(sums));
    }
    json.set("survival", each);
    json.set("expected_of",
             written.expected_of.empty() ? json.nothing() : json.text(written.expected_of));
    json.set("notes", list(notes()));
    json.set("base_checked", json.truth(!written.expected_of.empty()));
    json.set("survival_overall", survived(gguf::added_up(written.survival)));
    json.print();
}

void Report::print() const {
    const auto bytes = static_cast<double>(written.bytes);
    say(printable(output, 240) + ": " + std::to_string(plan.merged()) + " of " +
        std::to_string(plan.base().tensors().size()) + " tensors merged, " + human_bytes(bytes) +
        " in " + fixed(seconds, 2) + " s " + whole("(" + human_bytes(bytes / seconds) + "/s)"));
    if (!written.survival.empty()) {
        print_survival();
    }
    if (written.expected_of.empty()) {
        say(std::string("  ") + kGgufNote);
    } else {
        say("  the result is the one that the adapter expects of " +
            printable(written.expected_of, 240));
    }
    if (!note.empty()) {
        say("  note: " + printable(note, 400));
    }
}

void Report::print_survival() const {
    const ChangeSums overall = gguf::added_up(written.survival);
    const std::optional<double> part = gguf::part_of(overall);
    if (!part) {
        say("  the adapter changes nothing, so quantisation cannot lose anything");
        return;
    }
    std::vector<std::pair<double, std::string>> parts;
    std::set<std::string> shown;
    for (const auto& [tensor, sums] : written.survival) {
        if (const auto own = gguf::part_of(sums)) {
            parts.emplace_back(*own, tensor);
            shown.insert(percent(*own));
        }
    }
    std::sort(parts.begin(), parts.end());
    std::string least;
    for (std::size_t i = 0; i < std::min(parts.size(), kWorst); ++i) {
        least += (i == 0 ? "" : ", ") + printable(parts[i].second) + " " + percent(parts[i].first);
    }
    const std::string noise = fixed(gguf::noise_of(overall).value_or(0), 2);
    say("  " + percent(*part) + " of the adapter's change survives quantisation in " +
        std::to_string(parts.size()) + " tensors, beside noise of " + noise + " times its size" +
        (shown.size() == 1 ? "" : "; least in " + least));
}

void Report::warn_of_loss() const {
    const std::optional<double> part = gguf::part_of(gguf::added_up(written.survival));
    if (part && *part < kLittle) {
        const std::string finer = types().count("Q8_0") != 0 ? "f16" : "q8_0 or f16";
        warn("warning: only " + percent(*part) +
             " of the adapter's change survives quantisation. To keep more, load the adapter "
             "beside the base (nola export gguf-lora), or merge with nola-edge of the Python "
             "package: --rounding amplified, or a finer type, --outtype " +
             finer);
    }
}

}  // namespace

void refuse_to_check_gguf(const Arguments& arguments, const std::string& command) {
    if (arguments.value("--check-base") == "--check-base") {
        throw UsageFailure("",
                           "--check-base is for checkpoints: adapters record no fingerprint of a "
                           "GGUF file; leave it out",
                           "see nola " + command + " --help");
    }
}

int merge_into_gguf(const Arguments& arguments, const std::string& expected) {
    const std::string path = given_path("base", arguments.places()[0]);
    check_file_name(arguments.value("--output"), ".gguf", "the output is a GGUF file, like BASE",
                    path);
    const GivenAdapters given = given_adapters(arguments.places(), 1);
    refuse_to_check_gguf(arguments, "merge");
    const auto begin = std::chrono::steady_clock::now();
    const auto adapters = load_adapters(given);
    const auto input = std::make_shared<files::FileInput>(path.c_str());
    const files::GgufFile base(input);
    const gguf::Plan plan(base, adapters);
    const bool checks_result = arguments.value("--check-result") != "--no-check-result";
    const merging::Expectation expectation = merging::expectation(
        adapters, {"gguf", [&] { return plan.base_fingerprint(); }}, expected, checks_result);
    const std::string output = given_path("output", arguments.value("--output"));
    const gguf::Written written = gguf::write_result(
        *input, plan, {output, arguments.has("--force"), arguments.threads(), expectation});
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    const Report report{output, plan, written, taken.count(), expectation.note};
    if (arguments.has("--json")) {
        report.print_json();
    } else if (!arguments.has("--quiet")) {
        report.print();
    }
    report.warn_of_loss();
    return 0;
}

}  // namespace nola::program
