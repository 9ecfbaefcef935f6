// expand, project and merge on a CUDA device, with the bits that expand.h and merge.h promise.
//
// Each function puts its kernels on a stream of the current device and returns: no memory is
// allocated, nothing waits, so that a launch can be captured in a CUDA graph. Pointers in the jobs
// are to memory that this device can reach. Results do not depend on the device or on how many
// multiprocessors it has, but for project's last bits.
//
// Returns cudaSuccess or the error of the launch; an empty job launches nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "nola/cuda/jobs.h"

namespace nola::cuda {

// A plan's jobs, copied to the device.
template <class Job>
struct DeviceGroup {
    const Job* jobs = nullptr;  // device memory
    std::uint32_t count = 0;
    Job last{};  // the plan's last job, which tells how much there is to do
};

cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type, const ExpandJob& job,
                   cudaStream_t stream);
cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type,
                   const DeviceGroup<ExpandJob>& group, cudaStream_t stream);

// `workspace`: device memory of the plan's size, aligned to 8 bytes; its contents need no care.
cudaError_t project(Basis kind, std::uint64_t seed, ElementType type, const ProjectJob& job,
                    double* workspace, cudaStream_t stream);
cudaError_t project(Basis kind, std::uint64_t seed, ElementType type,
                    const DeviceGroup<ProjectJob>& group, double* workspace, cudaStream_t stream);

// Sets *not_finite, an integer in device memory, if a merged element is infinite or NaN, and leaves
// it alone otherwise.
cudaError_t merge(ElementType type, const MergeJob& job, int* not_finite, cudaStream_t stream);
cudaError_t merge(ElementType type, const DeviceGroup<MergeJob>& group, int* not_finite,
                  cudaStream_t stream);

}  // namespace nola::cuda
