// A merged GGUF file, written so that it is absent or complete.
#pragma once

#include <cstdint>
#include <string>

#include "files/input.h"
#include "merge/expectation.h"
#include "plan.h"
#include "survival.h"

namespace nola::gguf {

struct WriteOptions {
    std::string output;
    bool force = false;
    int num_threads = 0;
    merging::Expectation expected;
};

struct Written {
    std::uint64_t bytes = 0;
    Survival survival;        // of tensors of quantised types, in the file's order
    std::string expected_of;  // what the adapter's publisher calls the base, if this was expected
};

// Writes the result of a plan, whose base is `input`: every tensor in its own type, quantised ones
// to the nearest codes, everything else as it is. Throws files::Failure; nothing is left then.
Written write_result(const files::FileInput& input, const Plan& plan, const WriteOptions& options);

}  // namespace nola::gguf
