// Adapters as commands take them.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapters/weighted_adapter.h"
#include "files/input.h"

namespace nola::program {

// Opens a packed adapter. Throws files::Failure that says what to do about one that is none.
std::shared_ptr<const files::FileInput> open_adapter(const std::string& path);

// Where adapters are, and the weights of their factors.
using GivenAdapters = std::vector<std::pair<std::string, double>>;

// What places of a command line from `first` on say: PATH or PATH=WEIGHT, where a path that is
// there wins. Throws files::Failure where a weight is none, or nothing lies at a path.
GivenAdapters given_adapters(const std::vector<std::string>& places, std::size_t first);

// Reads them. Warns of weights that do not do what was meant; throws files::Failure.
std::vector<adapters::WeightedAdapter> load_adapters(const GivenAdapters& given);

}  // namespace nola::program
