// The only place that starts threads: a loop over independent pieces of work.
//
// Which thread takes which piece is left open; results must not depend on it.
#pragma once

#include <cstddef>
#ifndef _OPENMP
#include <atomic>
#include <exception>
#include <thread>
#include <vector>
#endif

#include "fp_environment.h"

namespace nola {

// The threads for so many pieces, the calling one included: at least one, and never more than can
// be made. num_threads <= 0 takes OpenMP's default or, in a build without OpenMP, the processors
// that this process may use.
int choose_threads(int num_threads, std::size_t pieces);

#ifndef _OPENMP
// The same with threads that are made for this loop; where one cannot be made, the others do.
template <class Body>
void run_with_threads(std::size_t pieces, int threads, const Body& body) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        const FpEnvironment environment;
        for (std::size_t piece = next++; piece < pieces; piece = next++) {
            body(piece);
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(static_cast<std::size_t>(threads) - 1);
        while (others.size() + 1 < static_cast<std::size_t>(threads)) {
            others.emplace_back(work);
        }
    } catch (const std::exception&) {  // a limit on threads, or on memory for their stacks
    }
    work();
    for (std::thread& other : others) {
        other.join();
    }
}
#endif

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
#else
    run_with_threads(pieces, threads, body);
#endif
}

}  // namespace nola
