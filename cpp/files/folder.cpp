#include "folder.h"

#include <algorithm>
#include <array>
#include <memory>
#include <set>

#include "failure.h"
#include "json.h"
#include "paths.h"
#include "printable.h"

namespace nola::files {

namespace {

constexpr std::string_view kIndexName = "model.safetensors.index.json";
// What the weights are called, transformers' way and diffusers'; the first that is there is taken.
constexpr std::string_view kWeightsNames[] = {
    "model.safetensors",
    kIndexName,
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
};
// Weights of any format. At the top they are another copy of those that are merged.
constexpr std::string_view kWeights[] = {
    ".bin",     ".pt",   ".pth",       kSafetensors, ".ckpt", ".gguf", ".ggml", ".h5",
    ".msgpack", ".onnx", ".onnx_data", ".tflite",    ".ot",   ".npz",  ".pkl",
};
// Where publishers put the same weights under other names.
constexpr std::string_view kOriginal = "original";
constexpr std::string_view kModules = "modules.json";

using Names = std::vector<std::string>;

bool has(const Names& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

bool ends_as_weights(std::string_view name) {
    return std::any_of(std::begin(kWeights), std::end(kWeights),
                       [&](std::string_view ending) { return ends_with(name, ending); });
}

bool is_word(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
}

// NAME.index.json or NAME.index.VARIANT.json, of weights of any format.
bool is_any_index(std::string_view name) {
    constexpr std::string_view kJson = ".json";
    constexpr std::string_view kIndex = ".index";
    if (!ends_with(name, kJson)) {
        return false;
    }
    name.remove_suffix(kJson.size());
    const std::size_t dot = name.rfind('.');
    const std::string_view variant = dot == name.npos ? "" : name.substr(dot + 1);
    if (!ends_with(name, kIndex) && !variant.empty() &&
        std::all_of(variant.begin(), variant.end(), is_word)) {
        name.remove_suffix(variant.size() + 1);
    }
    return ends_with(name, kIndex) && ends_as_weights(name.substr(0, name.size() - kIndex.size()));
}

bool is_weights(std::string_view name) {
    return ends_as_weights(name) || is_any_index(name);
}

std::string listed(const Names& names) {
    std::string text;
    for (const std::string& name : names) {
        text += (text.empty() ? "" : ", ") + name;
    }
    return printable(text);
}

// What a shard's name begins with; empty if it is none.
std::string shard_stem(std::string_view name) {
    constexpr std::string_view kForm = "-00000-of-00000.safetensors";
    if (name.size() <= kForm.size()) {
        return "";
    }
    const std::string_view end = name.substr(name.size() - kForm.size());
    for (std::size_t i = 0; i < kForm.size(); ++i) {
        const bool is_digit = end[i] >= '0' && end[i] <= '9';
        if (kForm[i] == '0' ? !is_digit : kForm[i] != end[i]) {
            return "";
        }
    }
    return std::string(name.substr(0, name.size() - kForm.size()));
}

// What to do about several files, none of which has a name that decides.
std::string which(const Names& names) {
    std::set<std::string> stems;
    for (const std::string& name : names) {
        if (const std::string stem = shard_stem(name); !stem.empty()) {
            stems.insert(stem);
        }
    }
    if (stems.size() == 1) {
        return " but no " + printable(*stems.begin()) +
               ".safetensors.index.json; download that too";
    }
    if (is_index(names[0])) {
        return ", " + listed(names) + "; keep only the one you want";
    }
    return " but no " + std::string(kIndexName) + "; give the path of one of them";
}

Names subfolders_with_weights(const std::string& folder) {
    Names found;
    for (const std::string& name : names_in(folder)) {
        const std::string path = join(folder, name);
        if (name[0] == '.' || is_link(path) || !is_folder(path)) {
            continue;
        }
        const Names inner = names_in(path);
        if (std::any_of(inner.begin(), inner.end(),
                        [](const std::string& file) { return ends_with(file, kSafetensors); })) {
            found.push_back(name);
        }
    }
    return found;
}

// What there is instead of weights, and what to do.
std::string nothing_to_merge_into(const std::string& folder, const Names& names) {
    if (has(names, kAdapterConfig)) {
        return "an adapter but no model; give the model that the adapter was trained on";
    }
    Names others;
    for (const std::string& name : names) {
        if (ends_with(name, ".gguf")) {
            return "no safetensors weights, but " + printable(name) +
                   "; to merge into a GGUF file, use nola-edge merge of the Python package";
        }
        if (ends_as_weights(name)) {
            others.push_back(name);
        }
    }
    if (!others.empty()) {
        return "no safetensors weights, only " + listed(others) +
               "; only safetensors is read, save the model with safe_serialization=True first";
    }
    if (const Names parts = subfolders_with_weights(folder); !parts.empty()) {
        return "no weights itself, but its subfolders do (" + listed(parts) +
               "); give one of them, such as " + printable(join(folder, parts.back()), 400);
    }
    return "neither " + std::string(kWeightsNames[0]) + " nor " + std::string(kIndexName);
}

// Relative paths of all files that are not hidden, nor in hidden folders.
void add_visible(const std::string& folder, const std::string& before, Names& found) {
    Names folders;
    for (const std::string& name : names_in(join(folder, before))) {
        const std::string relative = before.empty() ? name : join(before, name);
        const std::string path = join(folder, relative);
        if (name[0] == '.') {
            continue;
        }
        if (!is_folder(path)) {
            found.push_back(relative);
        } else if (is_link(path)) {
            throw CheckpointFailure(path, "",
                                    "is a link to a folder, which would be lost; put the folder "
                                    "itself there, or remove the link");
        } else {
            folders.push_back(relative);
        }
    }
    for (const std::string& inner : folders) {
        add_visible(folder, inner, found);
    }
}

bool is_at_top(std::string_view path) {
    return path.find('/') == path.npos;
}

std::string top_of(std::string_view path) {
    return std::string(path.substr(0, path.find('/')));
}

// Whether a file lies in a checkpoint of a Trainer's run, or is of its curves.
bool is_of_trainer(std::string_view path) {
    constexpr std::string_view kCheckpoint = "checkpoint-";
    if (is_at_top(path)) {
        return false;
    }
    const std::string top = top_of(path);
    const bool is_curve = top == "runs" && name_of(path).rfind("events.out.tfevents.", 0) == 0;
    const bool is_checkpoint = top.rfind(kCheckpoint, 0) == 0 && top.size() > kCheckpoint.size() &&
                               top.find_first_not_of("0123456789", kCheckpoint.size()) == top.npos;
    return is_curve || is_checkpoint;
}

bool may_be_of_another_part(std::string_view path) {
    return ends_with(path, kSafetensors) && !is_at_top(path) && top_of(path) != kOriginal &&
           !is_of_trainer(path);
}

// The folders, apart from the top, that sentence-transformers' modules.json names.
Names module_folders(const std::string& folder) {
    const std::string text = read_inside(folder, std::string(kModules), kMaxConfig);
    const Json json(text, join(folder, kModules));
    Names named;
    for_each_item(json.root(), [&](yyjson_val* module) {
        yyjson_val* path = yyjson_is_obj(module) ? yyjson_obj_get(module, "path") : nullptr;
        if (yyjson_is_str(path) && normal(text_of(path)) != ".") {
            named.push_back(normal(text_of(path)));
        }
    });
    return named;
}

bool is_named(std::string_view path, const Names& modules) {
    for (std::string place = parent_of(path); place != "."; place = parent_of(place)) {
        if (has(modules, place)) {
            return true;
        }
    }
    return false;
}

// Whether most tensors in a subfolder have name and shape of the model's own.
bool is_copy(const std::string& folder, const std::string& place, const Names& files,
             const HasTensor& has_tensor) {
    std::size_t total = 0;
    std::size_t same = 0;
    for (const std::string& path : files) {
        if (parent_of(path) != place || !ends_with(path, kSafetensors)) {
            continue;
        }
        const SafetensorsFile file(std::make_shared<FileInput>(inside(folder, path).c_str()));
        total += file.tensors().size();
        for (const TensorInfo& tensor : file.tensors()) {
            same += has_tensor(tensor) ? 1 : 0;
        }
    }
    return 2 * same > total;
}

// Subfolders whose safetensors are another part of the model.
Names other_parts(const std::string& folder, const Names& files, const HasTensor& has_tensor) {
    std::set<std::string> places;
    for (const std::string& path : files) {
        if (may_be_of_another_part(path)) {
            places.insert(parent_of(path));
        }
    }
    Names parts;
    for (const std::string& place : places) {
        if (!is_copy(folder, place, files, has_tensor)) {
            parts.push_back(place);
        }
    }
    return parts;
}

// Whether a file belongs to the model, by its name and where it lies.
bool belongs(const std::string& path, const Names& modules, const Names& parts) {
    if (!is_weights(name_of(path))) {
        return path != kAdapterConfig && path != "trainer_state.json";
    }
    const bool is_of_part = path.find(kSafetensors) != path.npos && has(parts, parent_of(path));
    return is_named(path, modules) || is_of_part;
}

}  // namespace

bool ends_with(std::string_view text, std::string_view ending) {
    return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
}

bool is_index(std::string_view name) {
    return name.find(kSafetensors) != name.npos && is_any_index(name);
}

bool is_own_weights(std::string_view path) {
    return path.find('/') == path.npos && (is_index(path) || ends_with(path, kSafetensors));
}

std::string find_weights(const std::string& folder) {
    Names names;
    for (const std::string& name : names_in(folder)) {
        if (!is_folder(join(folder, name))) {
            names.push_back(name);
        }
    }
    for (const std::string_view name : kWeightsNames) {
        if (has(names, name)) {
            return std::string(name);
        }
    }
    Names indices;
    Names weights;
    for (const std::string& name : names) {
        if (is_index(name)) {
            indices.push_back(name);
        } else if (ends_with(name, kSafetensors) && name != kAdapterWeights) {
            weights.push_back(name);
        }
    }
    const Names& found = indices.empty() ? weights : indices;
    if (found.size() == 1) {
        return found[0];
    }
    if (found.empty()) {
        throw CheckpointFailure(folder, "", "has " + nothing_to_merge_into(folder, names));
    }
    const char* what = indices.empty() ? " safetensors files" : " indices of safetensors files";
    throw CheckpointFailure(folder, "",
                            "has " + std::to_string(found.size()) + what + which(found));
}

Companions find_companions(const std::string& folder, const Names& own,
                           const HasTensor& has_tensor) {
    Names files;
    add_visible(folder, "", files);
    files.erase(std::remove_if(files.begin(), files.end(),
                               [&](const std::string& path) { return has(own, path); }),
                files.end());
    const Names modules = has(files, kModules) ? module_folders(folder) : Names();
    const Names parts = other_parts(folder, files, has_tensor);
    Companions found;
    for (const std::string& path : files) {
        if (is_of_trainer(path)) {
            if (!has(found.left, top_of(path))) {
                found.left.push_back(top_of(path));
            }
        } else if (belongs(path, modules, parts) && is_file(inside(folder, path))) {
            found.carried.push_back(path);
            found.identities.push_back(identity_of(*status_of(join(folder, path))));
            if (is_weights(name_of(path))) {
                found.weights.push_back(path);
            }
        } else {
            found.left.push_back(path);
        }
    }
    return found;
}

}  // namespace nola::files
