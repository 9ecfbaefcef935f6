// A block and a warp as the bodies of the CUDA kernels see them, run thread by thread on the host,
// and whole launches made of them. What the .cu files add to this is the index of a block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cuda/expand_block.h"
#include "cuda/merge_block.h"
#include "cuda/project_warp.h"
#include "nola/cuda/jobs.h"

namespace nola::test {

template <unsigned kThreads>
struct HostThreads {
    template <class T>
    class PerThread {
    public:
        T& operator[](unsigned thread) { return values_[thread]; }

    private:
        std::unique_ptr<T[]> values_ = std::make_unique<T[]>(kThreads);
    };

    // In another order than a device would be likely to: no phase may depend on it.
    template <class Body>
    void phase(const Body& body) const {
        for (unsigned thread = kThreads; thread-- > 0;) {
            body(thread);
        }
    }
};

// Shared memory holds whatever was there before.
template <class Shared>
std::unique_ptr<Shared> dirty_shared() {
    auto shared = std::make_unique<Shared>();
    std::fill_n(reinterpret_cast<unsigned char*>(shared.get()), sizeof(Shared), 0xFFU);
    return shared;
}

template <class Jobs>
void run_expand(Basis kind, std::uint64_t seed, ElementType type, const Jobs& jobs,
                std::uint64_t tiles, std::uint64_t per_block) {
    const cuda::RoundKeys keys = cuda::make_round_keys(seed);
    HostThreads<cuda::kExpandThreads> block;
    for (std::uint64_t first = 0; first < tiles; first += per_block) {
        const std::uint64_t last = std::min(first + per_block, tiles);
        if (kind == Basis::kRademacher) {
            const auto shared = dirty_shared<cuda::ExpandShared<Basis::kRademacher>>();
            cuda::expand_tiles(block, keys, type, jobs, first, last, *shared);
        } else {
            const auto shared = dirty_shared<cuda::ExpandShared<Basis::kUniform>>();
            cuda::expand_tiles(block, keys, type, jobs, first, last, *shared);
        }
    }
}

template <class Jobs>
void run_project(Basis kind, std::uint64_t seed, ElementType type, const Jobs& jobs,
                 const cuda::ProjectJob& last, double* workspace) {
    const cuda::RoundKeys keys = cuda::make_round_keys(seed);
    HostThreads<cuda::kWarp> warp;
    for (std::uint64_t item = last.end; item-- > 0;) {
        const auto shared = dirty_shared<cuda::ProjectShared>();
        if (kind == Basis::kRademacher) {
            cuda::project_item<Basis::kRademacher>(warp, keys, type, jobs, item, workspace,
                                                   *shared);
        } else {
            cuda::project_item<Basis::kUniform>(warp, keys, type, jobs, item, workspace, *shared);
        }
    }
    HostThreads<cuda::kFinishThreads> block;
    for (std::uint64_t group = 0; group < last.end_groups; ++group) {
        const auto shared = dirty_shared<cuda::FinishShared>();
        cuda::finish_group(block, jobs, group, workspace, *shared);
    }
}

template <class T, class Jobs>
void run_merge_as(const Jobs& jobs, std::uint64_t tiles, int* not_finite) {
    HostThreads<cuda::kMergeThreads> block;
    for (std::uint64_t tile = 0; tile < tiles; ++tile) {
        const auto shared = dirty_shared<cuda::MergeShared>();
        cuda::merge_tile<T>(block, jobs, tile, not_finite, *shared);
    }
}

template <class Jobs>
void run_merge(ElementType type, const Jobs& jobs, std::uint64_t tiles, int* not_finite) {
    switch (type) {
        case ElementType::kFloat32:
            return run_merge_as<float>(jobs, tiles, not_finite);
        case ElementType::kFloat16:
            return run_merge_as<cuda::Half>(jobs, tiles, not_finite);
        case ElementType::kBFloat16:
            return run_merge_as<cuda::BFloat16>(jobs, tiles, not_finite);
    }
}

template <class Job>
cuda::JobTable<Job> table_of(const cuda::Plan<Job>& plan) {
    return {plan.jobs.data(), static_cast<std::uint32_t>(plan.jobs.size())};
}

}  // namespace nola::test
