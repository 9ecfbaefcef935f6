#include "architectures.h"

#include <algorithm>
#include <optional>
#include <type_traits>

#include "files/failure.h"
#include "files/printable.h"

namespace nola::gguf {

namespace {

using files::GgufFile;
using files::GgufValue;
using files::Mismatch;
using Names = std::vector<std::pair<std::string_view, std::string_view>>;

constexpr const char* kType = "general.type";
constexpr const char* kArchitecture = "general.architecture";
constexpr const char* kSplit = "split.count";
constexpr std::uint64_t kMaxHeads = 1U << 20;
constexpr std::size_t kMaxDigits = 6;  // of a block's number

const std::vector<Architecture>& architectures() {
    static const Names qkv = {
        {"self_attn.q_proj", "attn_q"}, {"self_attn.k_proj", "attn_k"},
        {"self_attn.v_proj", "attn_v"}, {"self_attn.o_proj", "attn_output"},
        {"mlp.gate_proj", "ffn_gate"},  {"mlp.up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},
    };
    static const Names fused = {
        {"self_attn.qkv_proj", "attn_qkv"},
        {"self_attn.o_proj", "attn_output"},
        {"mlp.gate_up_proj", "ffn_up"},
        {"mlp.down_proj", "ffn_down"},
    };
    static const Names gpt2 = {
        {"attn.c_attn", "attn_qkv"},
        {"attn.c_proj", "attn_output"},
        {"mlp.c_fc", "ffn_up"},
        {"mlp.c_proj", "ffn_down"},
    };
    static const std::vector<std::string_view> layers = {
        "layers.", "model.layers.", "language_model.model.layers.", "model.language_model.layers."};
    static const std::vector<Architecture> known = {
        {"llama", qkv, layers, true}, {"qwen2", qkv, layers},
        {"qwen3", qkv, layers},       {"gemma", qkv, layers},
        {"gemma2", qkv, layers},      {"gemma3", qkv, layers},
        {"phi3", fused, layers},      {"gpt2", gpt2, {"h.", "transformer.h."}},
    };
    return known;
}

const Architecture& known_architecture(const GgufFile& file) {
    const GgufValue* stated = file.metadata(kArchitecture);
    const std::string* name = std::get_if<std::string>(stated);
    std::string all;
    for (const Architecture& known : architectures()) {
        if (name != nullptr && *name == known.name) {
            return known;
        }
        all += (all.empty() ? "" : ", ") + std::string(known.name);
    }
    throw Mismatch(file.input().name(), kArchitecture,
                   (stated == nullptr ? "None" : files::shown(*stated)) +
                       " is not supported (only " + all +
                       " are). Merge into the Hugging Face checkpoint and convert that");
}

// Whether Python would take a value for none.
bool is_nothing(const GgufValue* value) {
    struct Nothing {
        bool operator()(const std::string& text) const { return text.empty(); }
        bool operator()(const std::vector<files::GgufNumber>& numbers) const {
            return numbers.empty();
        }
        bool operator()(const files::LongValue&) const { return false; }
        bool operator()(bool truth) const { return !truth; }
        bool operator()(std::uint64_t number) const { return number == 0; }
        bool operator()(std::int64_t number) const { return number == 0; }
        bool operator()(double number) const { return number == 0; }
    };
    return value == nullptr || std::visit(Nothing{}, *value);
}

bool is_zero_or_one(const GgufValue& value) {
    return std::visit(
        [](const auto& plain) {
            if constexpr (std::is_arithmetic_v<std::decay_t<decltype(plain)>>) {
                return plain == 0 || plain == 1;
            }
            return false;
        },
        value);
}

template <class Value>
std::optional<std::uint64_t> count_of(const Value& value) {
    std::optional<std::uint64_t> count;
    if (const auto* number = std::get_if<std::uint64_t>(&value)) {
        count = *number;
    } else if (const auto* other = std::get_if<std::int64_t>(&value); other && *other >= 0) {
        count = static_cast<std::uint64_t>(*other);
    }
    return count && *count < kMaxHeads ? count : std::nullopt;
}

Heads heads_of(const GgufFile& file, const std::string& key, const Heads& otherwise) {
    const GgufValue* value = file.metadata(key);
    if (is_nothing(value)) {
        return otherwise;
    }
    Heads heads;
    bool are_counts = true;
    const auto add = [&](const auto& number) {
        const std::optional<std::uint64_t> count = count_of(number);
        are_counts = are_counts && count;
        heads.counts.push_back(count.value_or(0));
    };
    if (const auto* numbers = std::get_if<std::vector<files::GgufNumber>>(value)) {
        heads.is_of_each = true;
        std::for_each(numbers->begin(), numbers->end(), add);
    } else {
        add(*value);
    }
    if (!are_counts) {
        throw files::Failure(file.input().name(), key,
                             files::shown(*value) + " is not a number of heads", "ArgumentError");
    }
    return heads;
}

// A module of a block, and the block's number.
struct InBlock {
    std::string block;
    std::string_view module;
};

std::optional<InBlock> in_block(const Architecture& architecture, std::string_view module) {
    for (const std::string_view prefix : architecture.blocks) {
        if (module.substr(0, prefix.size()) != prefix) {
            continue;
        }
        const std::string_view rest = module.substr(prefix.size());
        const std::size_t digits = std::min(rest.find_first_not_of("0123456789"), rest.size());
        const bool is_number =
            digits > 0 && digits <= kMaxDigits && (rest[0] != '0' || digits == 1);
        if (is_number && rest.substr(digits, 1) == ".") {
            return InBlock{std::string(rest.substr(0, digits)), rest.substr(digits + 1)};
        }
    }
    return std::nullopt;
}

}  // namespace

std::uint64_t Heads::of(std::uint64_t block) const {
    const std::uint64_t at = is_of_each ? block : 0;
    return at < counts.size() ? counts[static_cast<std::size_t>(at)] : 0;
}

Model::Model(const GgufFile& file) {
    const std::string& path = file.input().name();
    const GgufValue* type = file.metadata(kType);
    if (type != nullptr && *type != GgufValue(std::string("model"))) {
        throw Mismatch(path, kType, "is " + files::shown(*type) + ", not a model");
    }
    if (const GgufValue* parts = file.metadata(kSplit);
        parts != nullptr && !is_zero_or_one(*parts)) {
        throw Mismatch(path, kSplit,
                       "the model is split over several files; join them with llama-gguf-split "
                       "--merge");
    }
    architecture_ = &known_architecture(file);
    const std::string key = std::string(architecture_->name) + ".attention.head_count";
    heads_ = heads_of(file, key, {{0}, false});
    key_heads_ = heads_of(file, key + "_kv", heads_);
}

Place Model::place(const std::string& module, const std::string& adapter) const {
    if (module == "lm_head") {
        return {"output.weight"};
    }
    const std::optional<InBlock> found = in_block(*architecture_, module);
    const auto& modules = architecture_->modules;
    const auto part = std::find_if(modules.begin(), modules.end(), [&](const auto& known) {
        return found && known.first == found->module;
    });
    if (part == modules.end()) {
        std::string known;
        for (const auto& each : modules) {
            known += (known.empty() ? "" : ", ") + std::string(each.first);
        }
        throw Mismatch(adapter, module,
                       std::string("is not a module of the architecture ") + architecture_->name +
                           ", whose layers have " + known);
    }
    Place place{"blk." + found->block + "." + std::string(part->second) + ".weight"};
    if (architecture_->is_interleaved && (part->second == "attn_q" || part->second == "attn_k")) {
        const Heads& heads = part->second == "attn_q" ? heads_ : key_heads_;
        place.heads = heads.of(std::stoul(found->block));
        if (place.heads == 0) {
            throw Mismatch(adapter, module,
                           "the base does not state its number of attention heads");
        }
    }
    return place;
}

}  // namespace nola::gguf
