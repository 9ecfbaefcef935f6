// How a kernel finds its job, and a job its elements.
#pragma once

#include "cuda/philox_thread.h"
#include "cuda/thread.h"
#include "cuda/tiles.h"
#include "nola/cuda/jobs.h"

namespace nola::cuda {

// The one job of a launch, a parameter of the kernel.
template <class Job>
struct OneJob {
    Job job;

    NOLA_BODY std::uint32_t find(std::uint64_t, std::uint64_t Job::*) const { return 0; }
    NOLA_BODY const Job& operator[](std::uint32_t) const { return job; }
};

// The jobs of a group, in device memory.
template <class Job>
struct JobTable {
    const Job* jobs;
    std::uint32_t count;

    // The first job whose `end` lies behind a piece of work; jobs with nothing to do are passed.
    NOLA_BODY std::uint32_t find(std::uint64_t piece, std::uint64_t Job::* end) const {
        std::uint32_t low = 0;
        std::uint32_t high = count - 1;
        while (low < high) {
            const std::uint32_t middle = low + (high - low) / 2;
            if (jobs[middle].*end > piece) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        return low;
    }
    NOLA_BODY const Job& operator[](std::uint32_t index) const { return jobs[index]; }
};

// The first piece of work of a job; `end` is that of the pieces of it and of those before it.
template <class Jobs, class Job>
NOLA_BODY std::uint64_t first_piece(const Jobs& jobs, std::uint32_t index,
                                    std::uint64_t Job::* end) {
    return index == 0 ? 0 : jobs[index - 1].*end;
}

// Four elements of a stripe that one counter gives, as indices of the window.
struct Elements {
    std::uint32_t counter;
    std::int64_t in_run;      // index of the first within its run; the others follow at 16 apart
    std::uint64_t run_begin;  // index of the run's first element within the window
    std::uint64_t run_length;

    NOLA_BODY bool contains(unsigned word) const {
        return static_cast<std::uint64_t>(in_run + word * kStripeLanes) < run_length;
    }
    NOLA_BODY std::uint64_t index(unsigned word) const {
        return run_begin + static_cast<std::uint64_t>(in_run + word * kStripeLanes);
    }
};

NOLA_BODY Elements elements_at(const Slots& slots, std::uint64_t slot, unsigned lane) {
    std::uint64_t run = 0;
    std::uint64_t within = slot;
    if (slots.count != slots.per_run) {
        run = slot / slots.per_run;
        within = slot - run * slots.per_run;
    }
    const std::uint64_t first = slots.first + run * slots.step;
    const std::uint64_t stripe = first / kStripe + within;
    Elements elements{};
    elements.counter = static_cast<std::uint32_t>(stripe * kStripeLanes + lane);
    elements.in_run = static_cast<std::int64_t>(stripe * kStripe + lane - first);
    elements.run_begin = run * slots.run_length;
    elements.run_length = slots.run_length;
    return elements;
}

}  // namespace nola::cuda
