// `nola merge`.

#include <algorithm>
#include <chrono>

#include "adapter.h"
#include "commands.h"
#include "files/failure.h"
#include "files/paths.h"
#include "files/printable.h"
#include "files/signature.h"
#include "layout.h"
#include "merge/plan.h"
#include "merge/write.h"
#include "merge_gguf.h"
#include "output.h"
#include "output_names.h"

namespace nola::program {

namespace {

using adapters::WeightedAdapter;
using files::Checkpoint;
using files::Failure;
using files::OutputFailure;
using files::printable;
using merging::Plan;

// Refuses names of outputs that say something else than what is written.
void check_output_name(const std::string& base, const std::string& output) {
    if (files::is_folder(base)) {
        check_folder_name(output, "the output is a folder, like BASE");
    } else if (files::is_here(base)) {
        try {
            check_file_name(output, ".safetensors", "the output is a file, like BASE", base);
        } catch (const OutputFailure&) {
            const Checkpoint readable(base);  // else what to call the output is the wrong advice
            throw;
        }
    }
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
        const auto bytes = static_cast<double>(base.bytes());
        say(printable(output, 240) + ": " + std::to_string(plan.merged()) + " of " +
            std::to_string(base.tensors().size()) + " tensors merged, " + human_bytes(bytes) +
            " in " + fixed(seconds, 2) + " s " + whole("(" + human_bytes(bytes / seconds) + "/s)"));
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

int run(const Arguments& arguments) {
    const int threads = arguments.threads();
    arguments.check_given("--output", "-o");
    const std::string expected = expected_hash(arguments);
    const std::string output = given_path("output", arguments.value("--output"));
    const std::string base_path = given_path("base", arguments.places()[0]);
    if (files::is_gguf(base_path)) {
        return merge_into_gguf(arguments, expected);
    }
    check_output_name(base_path, arguments.value("--output"));
    const GivenAdapters given = given_adapters(arguments.places(), 1);
    if (!files::is_here(base_path)) {
        throw files::CheckpointFailure(base_path, "", "does not exist");
    }
    const auto begin = std::chrono::steady_clock::now();
    Checkpoint base(base_path);
    const std::vector<WeightedAdapter> adapters = load_adapters(given);
    const bool checks_base = arguments.value("--check-base") != "--no-check-base";
    const Plan plan(base, adapters, checks_base);
    const bool checks_result = arguments.value("--check-result") != "--no-check-result";
    const merging::ExpectedBase known{base.is_folder() ? "folder" : "safetensors",
                                      [&] { return plan.base_fingerprint(); }};
    const merging::Expectation expectation =
        merging::expectation(adapters, known, expected, checks_result);
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
        "BASE is a safetensors file, a Hugging Face folder, or a GGUF file; the output has the "
        "same layout, and the same bytes as nola-edge merge gives it. An ADAPTER is a packed file "
        "(nola-edge pack); each may have a weight: ADAPTER=0.5. Several are summed in fp32, in the "
        "order given, which is part of the bits, and rounded once. At every moment the output is "
        "either absent or complete.",
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
