// Which stored tensor is the weight of which module. Streams follow from the adapter's own names,
// so nothing is ever renamed.
#pragma once

#include <string>
#include <vector>

#include "files/checkpoint.h"
#include "nola_adapter.h"

namespace nola::adapters {

// Where a base has the weight of each module, in the modules' order. Names match as they are
// recorded or else as they are, or all of them after one and the same prefix is added or removed.
// Throws files::Mismatch, which calls the adapter `file`.
std::vector<TensorPart> match(const NolaAdapter& adapter, const std::string& file,
                              const files::Checkpoint& base);

// What models call the embedding of their input, and their output layer, at the end of its name.
bool is_input_embedding(const std::string& tensor);
bool is_output_layer(const std::string& tensor);

// Whether a base has a tensor of its own for the output layer.
bool has_output_layer(const files::Checkpoint& base);

}  // namespace nola::adapters
