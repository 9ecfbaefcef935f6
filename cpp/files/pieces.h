// Work in pieces that threads share, which ends at the first failure, or at a signal.
#pragma once

#include <cstddef>
#include <functional>

namespace nola::files {

// Calls work(piece) for each piece in [0, count), on as many threads as parallel_for would. Throws
// what the first piece threw, in their order, after all threads have come back.
void for_each_piece(std::size_t count, int num_threads,
                    const std::function<void(std::size_t)>& work);

}  // namespace nola::files
