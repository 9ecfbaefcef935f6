// What is left of an adapter's change when a tensor is quantised again, and what is added to it.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "nola/quantize.h"

namespace nola::gguf {

// The part of the change that is there, its projection: 1 is all of it, 0 none. Nothing if there is
// no change.
std::optional<double> part_of(const ChangeSums& sums);

// The size of what else is there, relative to the change.
std::optional<double> noise_of(const ChangeSums& sums);

// Of tensors by their names.
using Survival = std::vector<std::pair<std::string, ChangeSums>>;

// Of all changes together.
ChangeSums added_up(const Survival& survival);

}  // namespace nola::gguf
