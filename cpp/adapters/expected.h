// What merging an adapter into a base must give (docs/adapter-format.md, *Expected results*).
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "yyjson.h"

namespace nola::adapters {

struct ExpectedResult {
    std::string name;  // what the publisher calls the base
    std::string kind;  // of the base and the result: "folder", "safetensors" or "gguf"
    std::string base_fingerprint;
    std::string sha256;                        // of the whole result
    std::map<std::string, std::string> files;  // of a folder: path -> SHA-256
};

// Reads the entries; `list` is null if there are none. Throws files::Failure, naming `file`, if one
// is not as it must be.
std::vector<ExpectedResult> parse_expected(yyjson_val* list, std::string_view file);

}  // namespace nola::adapters
