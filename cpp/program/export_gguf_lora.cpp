// `nola export gguf-lora`.
#include <algorithm>
#include <iterator>
#include <memory>
#include <string_view>

#include "adapter.h"
#include "commands.h"
#include "export/gguf_lora.h"
#include "files/failure.h"
#include "files/paths.h"
#include "files/printable.h"
#include "files/signature.h"
#include "gguf/targets.h"
#include "layout.h"
#include "merge_gguf.h"
#include "output.h"
#include "output_names.h"

namespace nola::program {

namespace {

using files::Failure;
using files::printable;

// A type of A and B as people write it.
bool is_half(const Arguments& arguments) {
    const std::string given = arguments.has("--dtype") ? arguments.value("--dtype") : "f32";
    std::string type = lower(given);
    type = type.substr(type.rfind("torch.", 0) == 0 ? 6 : 0);
    constexpr std::string_view kSingle[] = {"f32", "float32", "float", "fp32"};
    constexpr std::string_view kHalf[] = {"f16", "float16", "half", "fp16"};
    const auto is_among = [&](const auto& names) {
        return std::find(std::begin(names), std::end(names), type) != std::end(names);
    };
    if (!is_among(kSingle) && !is_among(kHalf)) {
        throw UsageFailure("--dtype",
                           "Invalid value for '--dtype' / '--outtype': '" + printable(given) +
                               "' is not one of f32, f16.",
                           "see nola export gguf-lora --help");
    }
    return is_among(kHalf);
}

files::GgufFile open_base(const std::string& path) {
    if (files::is_file(path)) {
        const files::FileInput file(path.c_str());
        files::refuse_lfs_pointer(files::beginning_of(file), file);
    }
    if (!files::is_gguf(path)) {
        throw files::CheckpointFailure(path, "",
                                       "is not a GGUF file, which this program needs; for a "
                                       "Hugging Face model use nola-edge export gguf-lora of the "
                                       "Python package");
    }
    return files::GgufFile(std::make_shared<files::FileInput>(path.c_str()));
}

void report(const Arguments& arguments, bool is_half, std::uint64_t bytes) {
    const std::string output = arguments.value("--output");
    if (arguments.has("--json")) {
        const JsonOutput json;
        json.set("output", json.text(output));
        json.set("dtype", json.text(is_half ? "F16" : "F32"));
        json.set("bytes", json.number(bytes));
        json.set("base_checked", json.truth(false));
        yyjson_mut_val* notes = json.list();
        yyjson_mut_arr_append(notes, json.text(kGgufNote));
        json.set("notes", notes);
        json.print();
    } else if (!arguments.has("--quiet")) {
        say(printable(files::normal(output), 240) + ": exact LoRA for llama.cpp, " +
            human_bytes(static_cast<double>(bytes)));
        say(std::string("  ") + kGgufNote);
    }
}

int run(const Arguments& arguments) {
    const int threads = arguments.threads();
    const bool half = is_half(arguments);
    arguments.check_given("--base", "");
    arguments.check_given("--output", "-o");
    const std::string base_path = given_path("base", arguments.value("--base"));
    refuse_to_check_gguf(arguments, "export gguf-lora");
    const std::string output = given_path("output", arguments.value("--output"));
    check_file_name(arguments.value("--output"), ".gguf", "the output is a file",
                    arguments.places()[0]);
    const GivenAdapters given = given_adapters(arguments.places(), 0);
    if (!files::is_here(base_path)) {
        throw files::CheckpointFailure(base_path, "", "does not exist");
    }
    const auto adapters = load_adapters(given);
    for (const adapters::WeightedAdapter& adapter : adapters) {
        gguf::refuse_whole_tensors({adapter.adapter, adapter.path});
    }
    const files::GgufFile base = open_base(base_path);
    const std::uint64_t bytes = exporting::export_gguf_lora(
        base, adapters, {output, arguments.has("--force"), half, threads});
    report(arguments, half, bytes);
    return 0;
}

}  // namespace

Command export_gguf_lora_command() {
    return {
        "export gguf-lora",
        "ADAPTER...",
        "Write an exact LoRA file for llama.cpp and Ollama.",
        "Write an exact LoRA file for llama.cpp and Ollama.\n\n"
        "An ADAPTER is a packed file (nola-edge pack). llama-cli -m BASE --lora FILE loads the "
        "result beside a base of any quantisation, which is not changed; in an Ollama Modelfile "
        "the line is ADAPTER FILE. Several ADAPTERs, each with a weight if you like (ADAPTER=0.5), "
        "become one LoRA. The bytes are those of nola-edge export gguf-lora.",
        {
            {"--base", "", "PATH", "The GGUF file it will be loaded with.  [required]"},
            {"--output", "-o", "PATH", "File to write, with the suffix .gguf.  [required]"},
            {"--dtype", "--outtype", "TYPE",
             "Type of A and B, f32 or f16; f16 rounds them.  [default: f32]"},
            {"--force", "", "", "Replace an existing output."},
            kThreads,
            kJson,
            kQuiet,
            {"--check-base", "--no-check-base", "",
             "Refused, or taken for granted: a GGUF file cannot be checked."},
            {"--drawn-on", "", "DEVICE", ""},
            {"--lora-alpha", "", "ALPHA", ""},
        },
        "nola export gguf-lora french.nola --base llama-3-8b-q4_k_m.gguf -o french.gguf",
        run,
    };
}

}  // namespace nola::program
