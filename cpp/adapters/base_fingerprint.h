// Digests that tell the base that an adapter was made for (docs/adapter-format.md,
// *Fingerprints*).
#pragma once

#include <string>
#include <vector>

#include "files/safetensors.h"

namespace nola::adapters {

// BLAKE2b of 16 bytes over the weights of modules, each sampled; in 32 digits. The two lists have
// one entry for each module.
std::string base_fingerprint(const std::vector<std::string>& modules,
                             const std::vector<files::StoredTensor>& weights);

}  // namespace nola::adapters
