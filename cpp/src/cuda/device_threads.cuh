// The threads of a device, as the bodies of the kernels see them; the host's stand in
// cpp/tests/cuda/host_threads.h.
#pragma once

namespace nola::cuda {

// A variable of each thread: here, of this one.
template <class T>
struct OwnVariable {
    T value;
    __device__ __forceinline__ T& operator[](unsigned) { return value; }
};

struct DeviceBlock {
    template <class T>
    using PerThread = OwnVariable<T>;

    template <class Body>
    __device__ __forceinline__ void phase(const Body& body) const {
        body(threadIdx.x);
        __syncthreads();
    }
};

struct DeviceWarp {
    template <class T>
    using PerThread = OwnVariable<T>;

    template <class Body>
    __device__ __forceinline__ void phase(const Body& body) const {
        body(threadIdx.x % warpSize);
        __syncwarp();
    }
};

}  // namespace nola::cuda
