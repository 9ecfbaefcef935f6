// The only place that starts threads: a loop over independent pieces of work.
//
// Which thread takes which piece is left open; results must not depend on it.
#pragma once

#include <cstddef>

#ifdef _OPENMP
#include <omp.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#endif

#include "fp_environment.h"

namespace nola {

#ifdef _OPENMP
// A child made by fork() inherits libgomp's record of its threads, but not the threads: a region
// in the child would wait for them for ever. So a child of a process that has used several threads
// works with one.
inline bool threads_survived() {
    static std::atomic<pid_t> owner{0};
    pid_t known = 0;
    const pid_t self = getpid();
    return owner.compare_exchange_strong(known, self) || known == self;
}
#endif

inline int resolve_threads(int num_threads, std::size_t pieces) {
#ifdef _OPENMP
    const int wanted = num_threads > 0 ? num_threads : omp_get_max_threads();
#else
    const int wanted = num_threads > 0 ? num_threads : 1;
#endif
    return static_cast<std::size_t>(wanted) < pieces ? wanted : static_cast<int>(pieces);
}

// Calls body(piece) for each piece in [0, pieces), in the specified floating-point environment.
// The body must not throw.
template <class Body>
void parallel_for(std::size_t pieces, int num_threads, const Body& body) {
    if (pieces == 0) {
        return;
    }
    int threads = resolve_threads(num_threads, pieces);
#ifdef _OPENMP
    if (threads > 1 && !threads_survived()) {
        threads = 1;
    }
#endif
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
#else
    parallel_for(pieces, 1, body);
#endif
}

}  // namespace nola
