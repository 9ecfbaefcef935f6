// Expands a matrix on a GPU: allocate, plan on the host, launch on a stream.
//
// Build with -DNOLA_CUDA=ON; links against nola_edge::nola_cuda.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#include "nola/cuda/launch.h"

namespace {

bool report(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    }
    return error == cudaSuccess;
}

}  // namespace

int main() {
    constexpr std::uint64_t kSeed = 42;
    const nola::Shape shape{16, 4096};
    const std::vector<float> alpha(128, 0.5F);
    std::vector<float> a(shape.rows * shape.cols);

    float* coefficients = nullptr;
    float* out = nullptr;
    if (!report(cudaMalloc(&coefficients, alpha.size() * sizeof(float)), "cudaMalloc") ||
        !report(cudaMalloc(&out, a.size() * sizeof(float)), "cudaMalloc")) {
        return 1;
    }
    cudaMemcpy(coefficients, alpha.data(), alpha.size() * sizeof(float), cudaMemcpyHostToDevice);

    // A plan of one task goes into the launch by value. One of many is a group: its jobs are copied
    // to the device, and DeviceGroup says where, how many, and which is the last.
    nola::cuda::ExpandTask task;
    task.matrix = {nola::Basis::kRademacher,
                   kSeed,
                   nola::stream_id("model.layers.0.self_attn.q_proj", nola::Factor::kA),
                   alpha.size(),
                   shape,
                   nola::Window::whole(shape)};
    task.coefficients = coefficients;
    task.out = out;
    const auto plan = nola::cuda::plan_expand({task});
    const cudaError_t error =
        nola::cuda::expand(task.matrix.basis, task.matrix.seed, nola::ElementType::kFloat32,
                           plan.jobs[0], /*stream=*/nullptr);
    if (!report(error, "expand")) {
        return 1;
    }
    cudaMemcpy(a.data(), out, a.size() * sizeof(float), cudaMemcpyDeviceToHost);
    std::printf("%g %g %g\n", static_cast<double>(a[0]), static_cast<double>(a[1]),
                static_cast<double>(a[2]));
    cudaFree(coefficients);
    cudaFree(out);
}
