// A merged checkpoint, written so that it is absent or complete.
#pragma once

#include <string>

#include "expectation.h"
#include "files/checkpoint.h"
#include "plan.h"

namespace nola::merging {

struct WriteOptions {
    std::string output;
    bool force = false;
    int num_threads = 0;
    Expectation expected;
};

// Writes the result of a plan for this base. Throws files::Failure; nothing is left then. Returns
// what the adapter's publisher calls the base of which it expects this result, or nothing.
std::string write_result(files::Checkpoint& base, const Plan& plan, const WriteOptions& options);

}  // namespace nola::merging
