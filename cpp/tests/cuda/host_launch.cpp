// The launches of nola/cuda/launch.h on the host, and a runtime to go with them: what lies between
// Python and the kernels can be tested without a GPU.
#include "cuda/host_threads.h"
#include "nola/cuda/launch.h"

namespace {
int current_device = 0;

cudaError_t outcome() {
    return current_device == 0 ? cudaSuccess : cudaErrorNoKernelImageForDevice;
}
}  // namespace

cudaError_t cudaSetDevice(int device) {
    if (device != 0 && device != 1) {
        return cudaErrorInvalidDevice;
    }
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice"
                                           : "cudaErrorNoKernelImageForDevice";
}

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "no kernel image";
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 5 : 2;
    return cudaSuccess;
}

namespace nola::cuda {
namespace {

template <class Job>
JobTable<Job> table_of(const DeviceGroup<Job>& group) {
    return {group.jobs, group.count};
}

}  // namespace

cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type, const ExpandJob& job,
                   cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_expand(kind, seed, type, OneJob<ExpandJob>{job}, job.end, 2);
    }
    return outcome();
}

cudaError_t expand(Basis kind, std::uint64_t seed, ElementType type,
                   const DeviceGroup<ExpandJob>& group, cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_expand(kind, seed, type, table_of(group), group.last.end, 2);
    }
    return outcome();
}

cudaError_t project(Basis kind, std::uint64_t seed, ElementType type, const ProjectJob& job,
                    double* workspace, cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_project(kind, seed, type, OneJob<ProjectJob>{job}, job, workspace);
    }
    return outcome();
}

cudaError_t project(Basis kind, std::uint64_t seed, ElementType type,
                    const DeviceGroup<ProjectJob>& group, double* workspace, cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_project(kind, seed, type, table_of(group), group.last, workspace);
    }
    return outcome();
}

cudaError_t merge(ElementType type, const MergeJob& job, int* not_finite, cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_merge(type, OneJob<MergeJob>{job}, job.end, not_finite);
    }
    return outcome();
}

cudaError_t merge(ElementType type, const DeviceGroup<MergeJob>& group, int* not_finite,
                  cudaStream_t) {
    if (outcome() == cudaSuccess) {
        test::run_merge(type, table_of(group), group.last.end, not_finite);
    }
    return outcome();
}

}  // namespace nola::cuda
