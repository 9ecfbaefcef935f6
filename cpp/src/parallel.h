// The only place that starts threads: a loop over independent pieces of work.
//
// Which thread takes which piece is left open; results must not depend on it.
#pragma once

#include <cstddef>

#include "fp_environment.h"

namespace nola {

// The threads for so many pieces, the calling one included: at least one, and never more than can
// be made. num_threads <= 0 takes OpenMP's default.
int choose_threads(int num_threads, std::size_t pieces);

// Calls body(piece) for each piece in [0, pieces), in the specified floating-point environment.
// The body must not throw.
template <class Body>
void parallel_for(std::size_t pieces, int num_threads, const Body& body) {
    if (pieces == 0) {
        return;
    }
    const int threads = choose_threads(num_threads, pieces);
    if (threads == 1) {
        const FpEnvironment environment;
        for (std::size_t piece = 0; piece < pieces; ++piece) {
            body(piece);
        }
        return;
    }
#ifdef _OPENMP
    // A thread count for this region alone: the global setting belongs to the caller.
#pragma omp parallel num_threads(threads)
    {
        const FpEnvironment environment;
#pragma omp for schedule(dynamic)
        for (std::size_t piece = 0; piece < pieces; ++piece) {
            body(piece);
        }
    }
#endif
}

}  // namespace nola
