// The files of a model's folder: its weights, what goes along with them, and what does not.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "input.h"
#include "safetensors.h"

namespace nola::files {

inline constexpr std::string_view kSafetensors = ".safetensors";
inline constexpr std::string_view kAdapterConfig = "adapter_config.json";
inline constexpr std::string_view kAdapterWeights = "adapter_model.safetensors";

bool ends_with(std::string_view text, std::string_view ending);

// Whether a file's name is that of an index of safetensors files, variants included.
bool is_index(std::string_view name);

// Whether a file of a merged folder, by its path, is of its weights or their index.
bool is_own_weights(std::string_view path);

// The name of a folder's weights: a safetensors file, or the index of several. Throws
// CheckpointFailure if there are none, or it is not clear which.
std::string find_weights(const std::string& folder);

// What stands beside the weights, as paths relative to the folder.
struct Companions {
    std::vector<std::string> carried;  // what belongs to the model
    std::vector<std::string> weights;  // of these, weights of other parts of it
    std::vector<Identity> identities;  // of what is carried, to notice changes
    std::vector<std::string> left;     // what does not belong to it
};

// Whether the weights have a tensor of this name and shape.
using HasTensor = std::function<bool(const TensorInfo& tensor)>;

// Tells what stands beside a folder's weights, which are called `own`. Throws Failure if a link
// leads out of the folder, or a subfolder's safetensors file is broken.
Companions find_companions(const std::string& folder, const std::vector<std::string>& own,
                           const HasTensor& has_tensor);

}  // namespace nola::files
