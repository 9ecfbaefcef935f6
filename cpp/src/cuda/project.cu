#include "cuda/device_threads.cuh"
#include "cuda/launch_plan.h"
#include "cuda/project_warp.h"
#include "nola/cuda/launch.h"

namespace nola::cuda {
namespace {

template <Basis kKind, class Jobs>
__global__ void __launch_bounds__(kWarp)
    project_kernel(const __grid_constant__ RoundKeys keys, const ElementType type,
                   const __grid_constant__ Jobs jobs, double* const workspace) {
    __shared__ ProjectShared shared;
    DeviceWarp warp;
    project_item<kKind>(warp, keys, type, jobs, blockIdx.x, workspace, shared);
}

template <class Jobs>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const __grid_constant__ Jobs jobs, const double* const workspace) {
    __shared__ FinishShared shared;
    DeviceBlock block;
    finish_group(block, jobs, blockIdx.x, workspace, shared);
}

template <class Jobs>
cudaError_t launch(Basis kind, std::uint64_t seed, ElementType type, const Jobs& jobs,
                   const ProjectJob& last, double* workspace, cudaStream_t stream) {
    if (last.end > kMaxBlocks || last.end_groups > kMaxBlocks) {
        return cudaErrorInvalidValue;
    }
    if (last.end != 0) {
        const auto kernel = kind == Basis::kRademacher ? project_kernel<Basis::kRademacher, Jobs>
                                                       : project_kernel<Basis::kUniform, Jobs>;
        kernel<<<static_cast<unsigned>(last.end), kWarp, 0, stream>>>(make_round_keys(seed), type,
                                                                      jobs, workspace);
        const cudaError_t error = cudaGetLastError();
        if (error != cudaSuccess) {
            return error;
        }
    }
    if (last.end_groups != 0) {
        finish_kernel<<<static_cast<unsigned>(last.end_groups), kFinishThreads, 0, stream>>>(
            jobs, workspace);
    }
    return cudaGetLastError();
}

}  // namespace

cudaError_t project(Basis kind, std::uint64_t seed, ElementType type, const ProjectJob& job,
                    double* workspace, cudaStream_t stream) {
    return launch(kind, seed, type, OneJob<ProjectJob>{job}, job, workspace, stream);
}

cudaError_t project(Basis kind, std::uint64_t seed, ElementType type,
                    const DeviceGroup<ProjectJob>& group, double* workspace, cudaStream_t stream) {
    return launch(kind, seed, type, JobTable<ProjectJob>{group.jobs, group.count}, group.last,
                  workspace, stream);
}

}  // namespace nola::cuda
