// How pieces of work are spread over a grid. Results depend on none of it.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

namespace nola::cuda {

inline constexpr std::uint64_t kMaxBlocks = (std::uint64_t{1} << 31) - 1;

inline cudaError_t count_multiprocessors(int& count) {
    int device = 0;
    const cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) {
        return error;
    }
    return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}

// How many consecutive pieces a block takes where it keeps something from one to the next: several,
// but never so many that a multiprocessor has nothing to do.
inline std::uint64_t pieces_per_block(std::uint64_t pieces, std::uint64_t most,
                                      int multiprocessors) {
    constexpr std::uint64_t kBlocksEach = 16;
    const std::uint64_t wanted = static_cast<std::uint64_t>(multiprocessors) * kBlocksEach;
    return std::clamp<std::uint64_t>(pieces / wanted, 1, most);
}

}  // namespace nola::cuda
