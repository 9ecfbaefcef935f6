// A merged checkpoint, written so that it is absent or complete.
#pragma once

#include <string>

#include "files/checkpoint.h"
#include "plan.h"

namespace nola::merging {

struct WriteOptions {
    std::string output;
    bool force = false;
    int num_threads = 0;
    std::string expected;  // the SHA-256 of the result; empty: any
};

// Writes the result of a plan for this base. Throws files::Failure; nothing is left then.
void write_result(files::Checkpoint& base, const Plan& plan, const WriteOptions& options);

}  // namespace nola::merging
