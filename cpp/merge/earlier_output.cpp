#include "earlier_output.h"

#include <algorithm>
#include <map>

#include "files/failure.h"
#include "files/paths.h"
#include "files/printable.h"

namespace nola::merging {

namespace {

using files::Checkpoint;
using files::ends_with;
using files::printable;
using Names = std::vector<std::string>;

// Says that a folder holds files which are not written; empty where there are none.
std::string foreign(const Names& names) {
    if (names.empty()) {
        return "";
    }
    return "holds " + printable(*std::min_element(names.begin(), names.end())) +
           (names.size() > 1 ? " and more" : "") + ", which is not part of such an output";
}

bool has(const Names& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_own(const std::string& name, const Names& companions) {
    return has(companions, name) || files::is_own_weights(name);
}

// Of a folder that holds anything but weights and files of the names of these.
std::string folder_obstacle(const std::string& path, const Names& companions) {
    const Names top = files::names_in(path);
    for (const std::string_view name : {files::kAdapterConfig, files::kAdapterWeights}) {
        if (has(top, name)) {
            return foreign({std::string(name)});
        }
    }
    if (files::in_hub_cache(path)) {
        return "lies in the Hugging Face cache";
    }
    Names others;
    for (const std::string& name : files::names_below(path)) {
        if (files::is_link(files::join(path, name))) {
            return "holds the link " + printable(name) + ", and an output holds none";
        }
        if (!is_own(name, companions)) {
            others.push_back(name);
        }
    }
    const bool has_weights = std::any_of(top.begin(), top.end(), [](const std::string& name) {
        return ends_with(name, files::kSafetensors);
    });
    if (others.empty() && !has_weights) {
        return "holds " + printable(top.empty() ? "" : top[0]) + " but no weights";
    }
    return foreign(others);
}

// Of a single file that is the weights of an adapter, by its name and what is beside it, or no
// safetensors file at all.
std::string file_obstacle(const std::string& path) {
    if (files::name_of(path) == files::kAdapterWeights) {
        return "has the name of an adapter's weights";
    }
    const std::string beside = files::join(files::parent_of(path), files::kAdapterConfig);
    if (files::link_status_of(beside)) {
        return "lies beside an adapter_config.json";
    }
    try {
        const files::SafetensorsFile file(std::make_shared<files::FileInput>(path.c_str()));
    } catch (const files::Failure&) {
        return "is not a safetensors file";
    }
    return "";
}

std::string shown(const std::vector<std::uint64_t>& shape) {
    return "[" + files::joined(shape, ", ") + "]";
}

Tensors tensors_of(const Checkpoint& checkpoint) {
    Tensors tensors;
    for (const files::StoredTensor& tensor : checkpoint.tensors()) {
        tensors.push_back(tensor.info);
    }
    return tensors;
}

std::map<std::string_view, const files::TensorInfo*> by_name(const Tensors& tensors) {
    std::map<std::string_view, const files::TensorInfo*> named;
    for (const files::TensorInfo* tensor : tensors) {
        named.emplace(tensor->name, tensor);
    }
    return named;
}

// Of a folder that holds safetensors files which its model does not consist of.
std::string stray(const Checkpoint& found) {
    Names names;
    for (const std::string& name : files::names_in(found.path())) {
        const auto& shards = found.shards();
        const bool is_shard = std::any_of(shards.begin(), shards.end(), [&](const auto& shard) {
            return files::name_of(shard->input().name()) == name;
        });
        if (ends_with(name, files::kSafetensors) && !is_shard) {
            names.push_back(name);
        }
    }
    return foreign(names);
}

std::string other_model(const Checkpoint& base, const std::string& path) {
    try {
        const Checkpoint found(path);
        const std::string other = other_tensors(tensors_of(base), tensors_of(found));
        return other.empty() && found.is_folder() ? stray(found) : other;
    } catch (const files::Failure& failure) {
        return "is not a checkpoint (" + failure.message() + ")";
    }
}

}  // namespace

std::string other_tensors(const Tensors& wanted, const Tensors& found) {
    const auto there = by_name(found);
    for (const files::TensorInfo* tensor : wanted) {
        const std::string name = "tensor '" + printable(tensor->name) + "'";
        const auto other = there.find(tensor->name);
        if (other == there.end()) {
            return "lacks " + name + ", which this output has";
        }
        if (other->second->shape != tensor->shape) {
            return "holds " + name + " as " + shown(other->second->shape) +
                   ", which this output has as " + shown(tensor->shape);
        }
    }
    const auto here = by_name(wanted);
    for (const files::TensorInfo* tensor : found) {
        if (here.count(tensor->name) == 0) {
            return "holds tensor '" + printable(tensor->name) + "', which this output has not";
        }
    }
    return "";
}

std::string obstacle(Checkpoint& base, const std::string& path) {
    const std::string found =
        base.is_folder() ? folder_obstacle(path, base.companions().carried) : file_obstacle(path);
    return found.empty() ? other_model(base, path) : found;
}

}  // namespace nola::merging
