#include "targets.h"

#include <algorithm>
#include <map>

#include "files/failure.h"
#include "files/printable.h"

namespace nola::gguf {

namespace {

using adapters::Named;
using files::GgufFile;
using files::Mismatch;
using files::printable;

Target target_of(const std::string& module, const Named& adapter, const GgufFile& base,
                 const Model& model) {
    const Place place = model.place(module, adapter.path);
    const std::string& file = base.input().name();
    Target target{base.find(place.tensor)};
    if (target.tensor == nullptr) {
        throw Mismatch(file, place.tensor,
                       "is missing, but module '" + printable(module) + "' of " +
                           printable(adapter.path) +
                           " needs it; is this the adapter's base, converted without fusing "
                           "layers?");
    }
    const auto& shape = target.tensor->shape;
    if (shape.size() != 2 || shape[0] == 0 || shape[1] == 0) {
        throw Mismatch(file, place.tensor,
                       "has shape [" + files::joined(shape, ", ") + "], but a matrix is needed");
    }
    adapters::check_factor_sizes(adapter, *target.tensor, file);
    if (place.heads != 0) {
        if (shape[0] % (2 * place.heads) != 0) {
            throw Mismatch(file, place.tensor,
                           std::to_string(shape[0]) + " rows cannot be divided into " +
                               std::to_string(place.heads) + " heads of two halves");
        }
        target.head_rows = shape[0] / place.heads;
    }
    return target;
}

void check_no_double(const std::vector<Target>& targets, const Named& adapter) {
    std::map<std::string_view, std::size_t> owners;
    for (std::size_t i = 0; i < targets.size(); ++i) {
        const auto [owner, is_first] = owners.emplace(targets[i].tensor->name, i);
        if (!is_first) {
            throw files::AdapterFailure(adapter.path, adapter.adapter.modules[i].name,
                                        "is the tensor " + targets[i].tensor->name +
                                            " in GGUF, and so is " +
                                            printable(adapter.adapter.modules[owner->second].name));
        }
    }
}

}  // namespace

merging::Term term_of(const adapters::WeightedAdapter& adapter, const adapters::Module& module,
                      const Target& target) {
    merging::Term term;
    term.adapter = &adapter;
    term.module = &module;
    term.outputs = target.outputs();
    term.inputs = target.inputs();
    term.end = term.outputs;
    term.head_rows = target.head_rows;
    return term;
}

void refuse_whole_tensors(const Named& adapter) {
    const auto& whole = adapter.adapter.whole_tensors;
    if (!whole.empty()) {
        throw files::AdapterFailure(
            adapter.path, whole[0],
            "carries whole tensors (modules_to_save or bias), which cannot go into GGUF; merge "
            "into the Hugging Face checkpoint and convert that");
    }
}

std::vector<Target> targets_of(const Named& adapter, const GgufFile& base, const Model& model) {
    refuse_whole_tensors(adapter);
    std::vector<Target> targets;
    adapters::Sizes sizes;
    std::vector<std::string> names;
    for (const adapters::Module& module : adapter.adapter.modules) {
        targets.push_back(target_of(module.name, adapter, base, model));
        sizes.outputs.push_back(targets.back().outputs());
        sizes.inputs.push_back(targets.back().inputs());
        names.push_back(targets.back().tensor->name);
    }
    check_no_double(targets, adapter);
    const std::string& file = base.input().name();
    adapters::check_shapes(adapter, sizes, file);
    adapters::check_biases(adapter, names, file,
                           [&](const auto& name) { return base.find(name) != nullptr; });
    return targets;
}

}  // namespace nola::gguf
