#include "cuda/device_threads.cuh"
#include "cuda/launch_plan.h"
#include "cuda/merge_block.h"
#include "nola/cuda/launch.h"

namespace nola::cuda {
namespace {

// Of a multiprocessor: 128 registers for each thread, which is what the sums, the base's elements
// and the operands of two ranks take.
constexpr int kMergeBlocks = 2;

template <class T, class Jobs>
__global__ void __launch_bounds__(kMergeThreads, kMergeBlocks)
    merge_kernel(const __grid_constant__ Jobs jobs, int* const not_finite) {
    __shared__ MergeShared shared;
    DeviceBlock block;
    merge_tile<T>(block, jobs, blockIdx.x, not_finite, shared);
}

template <class Jobs>
cudaError_t launch(ElementType type, const Jobs& jobs, std::uint64_t tiles, int* not_finite,
                   cudaStream_t stream) {
    if (tiles == 0 || tiles > kMaxBlocks) {
        return tiles == 0 ? cudaSuccess : cudaErrorInvalidValue;
    }
    auto kernel = merge_kernel<float, Jobs>;
    if (type == ElementType::kFloat16) {
        kernel = merge_kernel<Half, Jobs>;
    } else if (type == ElementType::kBFloat16) {
        kernel = merge_kernel<BFloat16, Jobs>;
    }
    kernel<<<static_cast<unsigned>(tiles), kMergeThreads, 0, stream>>>(jobs, not_finite);
    return cudaGetLastError();
}

}  // namespace

cudaError_t merge(ElementType type, const MergeJob& job, int* not_finite, cudaStream_t stream) {
    return launch(type, OneJob<MergeJob>{job}, job.end, not_finite, stream);
}

cudaError_t merge(ElementType type, const DeviceGroup<MergeJob>& group, int* not_finite,
                  cudaStream_t stream) {
    return launch(type, JobTable<MergeJob>{group.jobs, group.count}, group.last.end, not_finite,
                  stream);
}

}  // namespace nola::cuda
