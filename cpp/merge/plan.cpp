#include "plan.h"

#include <algorithm>
#include <optional>
#include <set>

#include "adapters/base_fingerprint.h"
#include "adapters/belongs.h"
#include "adapters/names.h"
#include "files/failure.h"
#include "files/json.h"
#include "files/paths.h"
#include "files/printable.h"

namespace nola::merging {

namespace {

using adapters::Module;
using adapters::TensorPart;
using files::Checkpoint;
using files::Mismatch;
using files::printable;
using files::StoredTensor;

constexpr std::string_view kConfig = "config.json";
// Models of transformers that have Conv1D layers, and what these are called in all of them.
constexpr std::string_view kConv1dModels[] = {
    "clvp_decoder", "clvp_encoder", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"};
constexpr std::string_view kConv1dLayers[] = {"c_attn", "c_fc", "c_proj", "q_attn"};
// Language models tie their output layer to the embedding where nothing is said.
constexpr std::string_view kLanguageModels[] = {"LM", "LMHeadModel", "ForConditionalGeneration"};

template <class Names>
bool is_among(std::string_view name, const Names& names) {
    return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

void refuse_whole_tensors(const WeightedAdapter& adapter) {
    if (!adapter.adapter.whole_tensors.empty()) {
        throw files::AdapterFailure(
            adapter.path, adapter.adapter.whole_tensors[0],
            "is a tensor that the adapter has as a whole (modules_to_save, bias), which this "
            "program does not put into a base; use nola-edge merge of the Python package");
    }
}

// Checks the stored tensor of a module.
void check_weight(const StoredTensor& stored, const Module& module,
                  const WeightedAdapter& adapter) {
    const files::TensorInfo& info = *stored.info;
    const std::string& file = stored.input->name();
    if (info.shape.size() != 2) {
        throw Mismatch(file, info.name,
                       "has shape [" + files::joined(info.shape, ", ") + "], but module '" +
                           printable(module.name) + "' of " + printable(adapter.path) +
                           " needs a matrix");
    }
    if (info.type != "F32" && info.type != "F16" && info.type != "BF16") {
        throw Mismatch(file, info.name,
                       "has dtype " + info.type + ", which cannot be merged; " +
                           (info.type == "F64"
                                ? "convert the base first: from_pretrained(…, "
                                  "dtype=torch.float32), then save_pretrained"
                                : "merge the F32, F16 or BF16 checkpoint that it was made from"));
    }
    adapters::check_factor_sizes({adapter.adapter, adapter.path}, info, file);
}

Term term_of(const StoredTensor& stored, const TensorPart& part, const Module& module,
             const WeightedAdapter& adapter) {
    const std::vector<std::uint64_t>& shape = stored.info->shape;
    Term term;
    term.adapter = &adapter;
    term.module = &module;
    term.transposed = adapter.adapter.config.fan_in_fan_out;
    const std::uint64_t outputs = term.transposed ? shape[1] : shape[0];
    term.inputs = term.transposed ? shape[0] : shape[1];
    if (part.end > outputs) {
        throw Mismatch(stored.input->name(), part.tensor,
                       "has " + std::to_string(outputs) + " outputs, but module '" +
                           printable(module.name) + "' of " + printable(adapter.path) +
                           " would take outputs " + std::to_string(part.begin) + " to " +
                           std::to_string(part.end));
    }
    term.begin = part.begin;
    term.end = part.end == 0 ? outputs : part.end;
    term.outputs = term.end - term.begin;
    return term;
}

adapters::Sizes sizes_of(const std::vector<Term>& terms) {
    adapters::Sizes sizes;
    for (const Term& term : terms) {
        sizes.outputs.push_back(term.outputs);
        sizes.inputs.push_back(term.inputs);
    }
    return sizes;
}

std::vector<std::string> names_of(const std::vector<TensorPart>& parts) {
    std::vector<std::string> names;
    names.reserve(parts.size());
    for (const TensorPart& part : parts) {
        names.push_back(part.tensor);
    }
    return names;
}

void check_fingerprint(const WeightedAdapter& adapter, const std::vector<StoredTensor>& weights,
                       const Checkpoint& base) {
    const std::string& stated = adapter.adapter.config.base_fingerprint;
    if (stated.empty()) {
        return;
    }
    std::vector<std::string> modules;
    for (const Module& module : adapter.adapter.modules) {
        modules.push_back(module.name);
    }
    const std::string found = adapters::base_fingerprint(modules, weights);
    if (found != stated) {
        throw Mismatch(base.path(), "base_fingerprint",
                       printable(adapter.path) + " was made for a base with fingerprint " +
                           printable(stated) + ", this one has " + found +
                           " (another model, another dtype, or already merged); to merge anyway, "
                           "pass --no-check-base");
    }
}

// Divides the lines that terms change into ranges, with the terms that change each.
std::vector<Segment> divided(const std::vector<Term>& terms, const StoredTensor& stored) {
    const std::vector<std::uint64_t>& shape = stored.info->shape;
    const bool all_whole = std::all_of(terms.begin(), terms.end(), [&](const Term& term) {
        return term.begin == 0 && term.end == (term.transposed ? shape[1] : shape[0]);
    });
    if (all_whole) {
        return {{terms[0].begin, terms[0].end, true, terms}};
    }
    std::set<std::uint64_t> ends;
    for (const Term& term : terms) {
        if (term.transposed != terms[0].transposed) {
            throw Mismatch("", stored.info->name,
                           "holds several modules, which one adapter takes for rows and another "
                           "for columns: they disagree about fan_in_fan_out");
        }
        ends.insert({term.begin, term.end});
    }
    std::vector<Segment> segments;
    for (auto end = std::next(ends.begin()); end != ends.end(); ++end) {
        Segment segment{*std::prev(end), *end, false, {}};
        for (const Term& term : terms) {
            if (term.begin <= segment.begin && segment.end <= term.end) {
                segment.terms.push_back(term);
            }
        }
        if (!segment.terms.empty()) {
            segments.push_back(std::move(segment));
        }
    }
    return segments;
}

// A base's config.json; nothing where there is none.
std::optional<files::Json> config_of(const Checkpoint& base) {
    const std::string path = files::join(base.path(), kConfig);
    if (!base.is_folder() || !files::is_file(path)) {
        return std::nullopt;
    }
    const std::string text =
        files::read_inside(base.path(), std::string(kConfig), files::kMaxConfig);
    std::optional<files::Json> config(std::in_place, text, path);
    if (!yyjson_is_obj(config->root())) {
        throw files::Failure(path, "", "holds no JSON object");
    }
    return config;
}

bool is_true(yyjson_val* value) {
    return yyjson_is_true(value) || (yyjson_is_num(value) && yyjson_get_num(value) != 0) ||
           (yyjson_is_str(value) && yyjson_get_len(value) != 0) ||
           (yyjson_is_ctn(value) && yyjson_get_len(value) != 0);
}

// Whether a configuration ties the output layer to the embedding.
bool is_tied(yyjson_val* config) {
    if (yyjson_val* stated = yyjson_obj_get(config, "tie_word_embeddings")) {
        return is_true(stated);
    }
    bool is_generative = false;
    files::for_each_item(yyjson_obj_get(config, "architectures"), [&](yyjson_val* name) {
        is_generative =
            is_generative || std::any_of(std::begin(kLanguageModels), std::end(kLanguageModels),
                                         [&](std::string_view ending) {
                                             return yyjson_is_str(name) &&
                                                    files::ends_with(files::text_of(name), ending);
                                         });
    });
    return is_generative;
}

// Whether a model, or a part of it, is of a type that has Conv1D layers.
bool has_conv1d(yyjson_val* config) {
    yyjson_val* type = yyjson_obj_get(config, "model_type");
    bool found = yyjson_is_str(type) && is_among(files::text_of(type), kConv1dModels);
    files::for_each_member(config, [&](std::string_view, yyjson_val* part) {
        found = found || (yyjson_is_obj(part) && has_conv1d(part));
    });
    return found;
}

// Refuses a square weight that an adapter takes for what it is not: no shape tells.
void check_orientation(const Term& term, const std::string& tensor, const Checkpoint& base) {
    const std::string& module = term.module->name;
    const std::size_t dot = module.rfind('.');
    const bool is_conv1d = is_among(module.substr(dot == module.npos ? 0 : dot + 1), kConv1dLayers);
    if (is_conv1d != term.transposed) {
        throw Mismatch(
            base.path(), tensor,
            std::string("is stored as ") + (is_conv1d ? "(in, out), as a Conv1D" : "(out, in)") +
                ", but " + printable(term.adapter->path) +
                " says fan_in_fan_out: " + (is_conv1d ? "false" : "true") +
                "; PEFT saves only one value for layers of both kinds: train an adapter for each "
                "kind, or merge this one with PEFT (merge_and_unload, then save_pretrained)");
    }
}

}  // namespace

Plan::Plan(const Checkpoint& base, const std::vector<WeightedAdapter>& adapters, bool check_base)
    : base_(base), adapters_(adapters) {
    Terms terms;
    for (const WeightedAdapter& adapter : adapters) {
        add(adapter, check_base, terms);
    }
    for (const auto& [tensor, own] : terms) {
        merges_.emplace(tensor, divided(own, base.find(tensor)));
    }
    check_orientations();
    check_tied();
}

void Plan::add(const WeightedAdapter& adapter, bool check_base, Terms& terms) const {
    refuse_whole_tensors(adapter);
    const std::vector<TensorPart> parts = adapters::match(adapter.adapter, adapter.path, base_);
    std::vector<StoredTensor> weights;
    std::vector<Term> own;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const Module& module = adapter.adapter.modules[i];
        weights.push_back(base_.find(parts[i].tensor));
        check_weight(weights[i], module, adapter);
        own.push_back(term_of(weights[i], parts[i], module, adapter));
        terms[parts[i].tensor].push_back(own[i]);
    }
    const adapters::Named named{adapter.adapter, adapter.path};
    adapters::check_shapes(named, sizes_of(own), base_.path());
    adapters::check_biases(named, names_of(parts), base_.path(),
                           [&](const auto& name) { return base_.find(name).info != nullptr; });
    if (check_base) {
        check_fingerprint(adapter, weights, base_);
    }
}

// Refuses to change an input embedding that is the output layer too: which name the output would
// need in the files, only the model's code knows.
void Plan::check_tied() const {
    const auto changed = std::find_if(merges_.begin(), merges_.end(), [](const auto& merge) {
        return adapters::is_input_embedding(merge.first);
    });
    if (changed == merges_.end() || adapters::has_output_layer(base_)) {
        return;
    }
    const auto config = config_of(base_);
    if (config && is_tied(config->root())) {
        throw Mismatch(base_.path(), changed->first,
                       "is tied to the output layer, and the adapter changes it for the input "
                       "alone; save the base with tie_word_embeddings=False (lm_head as a tensor "
                       "of its own) and merge into that");
    }
}

void Plan::check_orientations() const {
    std::vector<std::pair<const Term*, const std::string*>> square;
    for (const auto& [tensor, segments] : merges_) {
        for (const Segment& segment : segments) {
            for (const Term& term : segment.terms) {
                if (term.outputs == term.inputs) {
                    square.emplace_back(&term, &tensor);
                }
            }
        }
    }
    if (square.empty()) {
        return;
    }
    const auto config = config_of(base_);
    if (!config || !has_conv1d(config->root())) {
        return;
    }
    for (const auto& [term, tensor] : square) {
        check_orientation(*term, *tensor, base_);
    }
}

const std::vector<Segment>& Plan::segments(const std::string& tensor) const {
    static const std::vector<Segment> none;
    const auto found = merges_.find(tensor);
    return found == merges_.end() ? none : found->second;
}

std::string Plan::base_fingerprint() const {
    std::map<std::string, StoredTensor> weights;  // of each module
    for (const auto& [tensor, divided] : merges_) {
        for (const Segment& segment : divided) {
            for (const Term& term : segment.terms) {
                weights.emplace(term.module->name, base_.find(tensor));
            }
        }
    }
    std::vector<std::string> modules;
    std::vector<StoredTensor> stored;
    for (const auto& [module, weight] : weights) {
        modules.push_back(module);
        stored.push_back(weight);
    }
    return adapters::base_fingerprint(modules, stored);
}

}  // namespace nola::merging
