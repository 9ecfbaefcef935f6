// Merged weights, window by window, so that memory stays flat whatever the rank.
//
// The columns of a matrix are cut into strips, whose share of the right factor is expanded once and
// held; usually there is one. A strip is cut into windows of some rows, which threads share: each
// is read, merged while it is in cache, and written.
#pragma once

#include "plan.h"

namespace nola::merging {

// Writes a file of the result, of which the base has the `shard`-th, at a descriptor. Throws
// files::Failure, or std::system_error if it cannot be written.
void write_weights(const Plan& plan, std::size_t shard, int fd, int num_threads);

}  // namespace nola::merging
