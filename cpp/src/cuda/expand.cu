#include "cuda/device_threads.cuh"
#include "cuda/expand_block.h"
#include "cuda/launch_plan.h"
#include "nola/cuda/launch.h"

namespace nola::cuda {
namespace {

template <Basis kKind, class Jobs>
__global__ void __launch_bounds__(kExpandThreads)
    expand_kernel(const __grid_constant__ RoundKeys keys, const ElementType type,
                  const __grid_constant__ Jobs jobs, const std::uint64_t tiles,
                  const std::uint64_t per_block) {
    __shared__ ExpandShared<kKind> shared;
    DeviceBlock block;
    const std::uint64_t first = blockIdx.x * per_block;
    const std::uint64_t last = first + per_block < tiles ? first + per_block : tiles;
    expand_tiles<kKind>(block, keys, type, jobs, first, last, shared);
}

template <class Jobs>
cudaError_t launch(Basis kind, std::uint64_t seed, ElementType type, const Jobs& jobs,
                   std::uint64_t tiles, cudaStream_t stream) {
    constexpr std::uint64_t kMostTiles = 8;  // of one block, which then fills its tables once
    if (tiles == 0) {
        return cudaSuccess;
    }
    int multiprocessors = 0;
    const cudaError_t error = count_multiprocessors(multiprocessors);
    if (error != cudaSuccess) {
        return error;
    }
    const std::uint64_t per_block = pieces_per_block(tiles, kMostTiles, multiprocessors);
    const std::uint64_t blocks = (tiles + per_block - 1) / per_block;
    if (blocks > kMaxBlocks) {
        return cudaErrorInvalidValue;
    }
    const auto kernel = kind == Basis::kRademacher ? expand_kernel<Basis::kRademacher, Jobs>
                                                   : expand_kernel<Basis::kUniform, Jobs>;
    kernel<<<static_cast<unsigned>(blocks), kExpandThreads, 0, stream>>>(
        make_round_keys(seed), type, jobs, tiles, per_block);
    return cudaGetLastError();
}

}  // namespace

cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type, const ExpandJob& job,
                   cudaStream_t stream) {
    return launch(kind, seed, type, OneJob<ExpandJob>{job}, job.end, stream);
}

cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type,
                   const DeviceGroup<ExpandJob>& group, cudaStream_t stream) {
    return launch(kind, seed, type, JobTable<ExpandJob>{group.jobs, group.count}, group.last.end,
                  stream);
}

}  // namespace nola::cuda
