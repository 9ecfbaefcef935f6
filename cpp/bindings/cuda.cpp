// The bindings of the CUDA kernels: argument checks and nothing else. Tensors come as addresses of
// device memory, from nola_edge.torch.backends.cuda; the caller vouches for them: contiguous, of
// the size that the other arguments imply, on the device, and alive until the stream has passed the
// launch.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "nola/cuda/jobs.h"
#include "nola/cuda/launch.h"

namespace nola::bindings {
namespace py = pybind11;
namespace {

// The numbers in "75-real,80-real,…,121-virtual" for which there is machine code.
std::vector<int> architectures() {
    std::vector<int> numbers;
    std::stringstream list(NOLA_CUDA_ARCHITECTURES);
    for (std::string one; std::getline(list, one, ',');) {
        if (one.find("-virtual") == std::string::npos) {
            numbers.push_back(std::stoi(one));
        }
    }
    return numbers;
}

std::string describe_device(int device) {
    int major = 0;
    int minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
        return "cuda:" + std::to_string(device);
    }
    return "cuda:" + std::to_string(device) + " has compute capability " + std::to_string(major) +
           "." + std::to_string(minor) + "; this build has kernels for " NOLA_CUDA_ARCHITECTURES;
}

void check(cudaError_t error, const char* what, int device) {
    if (error == cudaSuccess) {
        return;
    }
    cudaGetLastError();  // an error of a launch is no error of what comes next
    std::string text =
        std::string(what) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error);
    if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
        error == cudaErrorUnsupportedPtxVersion) {
        text += "; " + describe_device(device);
    }
    if (error == cudaErrorInsufficientDriver) {
        text += "; built with " NOLA_CUDA_COMPILER
                ": install again with the nvcc of a CUDA that the driver knows, or with "
                "--config-settings=cmake.define.NOLA_CUDA=OFF";
    }
    throw std::runtime_error(text);
}

// Where a launch goes. The caller has made the device current in its own copy of the runtime; this
// one, linked statically, learns of it here. Nothing is put back: the caller does that.
struct Place {
    int device;
    cudaStream_t stream;

    Place(int number, std::uintptr_t address)
        : device(number),
          stream(reinterpret_cast<cudaStream_t>(address)) {  // NOLINT(performance-no-int-to-ptr)
        check(cudaSetDevice(device), "cudaSetDevice", device);
    }
};

void check_seed(std::uint64_t seed) {
    if (seed > kMaxSeed) {
        throw std::invalid_argument("seed: must be below 2^63");
    }
}

void expand_at(const Matrix& matrix, std::uintptr_t coefficients, std::uintptr_t out,
               std::string_view dtype, int device, std::uintptr_t queue) {
    const auto plan = cuda::plan_expand({{matrix, at<const float>(coefficients), at<void>(out)}});
    const ElementType type = element_type_from_name("out", dtype);
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::expand(matrix.basis, matrix.seed, type, plan.jobs[0], place.stream), "expand",
          device);
}

void project_at(const Matrix& matrix, std::uintptr_t grad, std::string_view dtype,
                std::uintptr_t out, std::uintptr_t workspace, int device, std::uintptr_t queue) {
    const auto plan = cuda::plan_project({{matrix, at<const void>(grad), at<float>(out)}});
    const ElementType type = element_type_from_name("grad", dtype);
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::project(matrix.basis, matrix.seed, type, plan.jobs[0], at<double>(workspace),
                        place.stream),
          "project", device);
}

void merge_at(std::uintptr_t base, std::uintptr_t out, std::string_view dtype, Extent shape,
              std::size_t stride, std::uintptr_t lora_b, std::uintptr_t lora_a,
              std::size_t a_stride, std::size_t rank, double scaling, std::uintptr_t not_finite,
              int device, std::uintptr_t queue) {
    const ElementType type = element_type_from_name("weight", dtype);
    const auto plan = cuda::plan_merge(
        type,
        {{at<const void>(base), at<void>(out), shape.first, shape.second, stride,
          at<const float>(lora_b), at<const float>(lora_a), a_stride, rank, float32_of(scaling)}});
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::merge(type, plan.jobs[0], at<int>(not_finite), place.stream), "merge", device);
}

// Groups. Planning makes a table of bytes, which the caller copies to the device; a launch takes
// both, the host's to see how much there is to do.
using MatrixTask = std::tuple<Matrix, std::uintptr_t, std::uintptr_t>;
using MergeTaskTuple = std::tuple<std::uintptr_t, std::uintptr_t, Extent, std::size_t,
                                  std::uintptr_t, std::uintptr_t, std::size_t, std::size_t, double>;

template <class Job>
py::bytes table_of(const cuda::Plan<Job>& plan) {
    return {reinterpret_cast<const char*>(plan.jobs.data()), plan.jobs.size() * sizeof(Job)};
}

template <class Job>
cuda::DeviceGroup<Job> group_of(std::string_view table, std::uintptr_t on_device) {
    if (table.size() % sizeof(Job) != 0) {
        throw std::invalid_argument("table: was not made for this operation");
    }
    cuda::DeviceGroup<Job> group;
    group.jobs = at<const Job>(on_device);
    group.count = static_cast<std::uint32_t>(table.size() / sizeof(Job));
    if (group.count != 0) {
        std::memcpy(&group.last, table.data() + table.size() - sizeof(Job), sizeof(Job));
    }
    return group;
}

py::bytes plan_expand(const std::vector<MatrixTask>& tasks) {
    std::vector<cuda::ExpandTask> all;
    all.reserve(tasks.size());
    for (const auto& [matrix, coefficients, out] : tasks) {
        all.push_back({matrix, at<const float>(coefficients), at<void>(out)});
    }
    return table_of(cuda::plan_expand(all));
}

void expand_group(std::string_view basis, std::uint64_t seed, std::string_view dtype,
                  std::string_view table, std::uintptr_t on_device, int device,
                  std::uintptr_t queue) {
    check_seed(seed);
    const auto group = group_of<cuda::ExpandJob>(table, on_device);
    const ElementType type = element_type_from_name("out", dtype);
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::expand(basis_from_name(basis), seed, type, group, place.stream), "expand", device);
}

py::tuple plan_project(const std::vector<MatrixTask>& tasks) {
    std::vector<cuda::ProjectTask> all;
    all.reserve(tasks.size());
    for (const auto& [matrix, grad, out] : tasks) {
        all.push_back({matrix, at<const void>(grad), at<float>(out)});
    }
    const auto plan = cuda::plan_project(all);
    return py::make_tuple(table_of(plan), plan.workspace);
}

void project_group(std::string_view basis, std::uint64_t seed, std::string_view dtype,
                   std::string_view table, std::uintptr_t on_device, std::uintptr_t workspace,
                   int device, std::uintptr_t queue) {
    check_seed(seed);
    const auto group = group_of<cuda::ProjectJob>(table, on_device);
    const ElementType type = element_type_from_name("grad", dtype);
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::project(basis_from_name(basis), seed, type, group, at<double>(workspace),
                        place.stream),
          "project", device);
}

py::bytes plan_merge(std::string_view dtype, const std::vector<MergeTaskTuple>& tasks) {
    std::vector<cuda::MergeTask> all;
    all.reserve(tasks.size());
    for (const auto& [base, out, shape, stride, b, a, a_stride, rank, scaling] : tasks) {
        all.push_back({at<const void>(base), at<void>(out), shape.first, shape.second, stride,
                       at<const float>(b), at<const float>(a), a_stride, rank,
                       float32_of(scaling)});
    }
    return table_of(cuda::plan_merge(element_type_from_name("weight", dtype), all));
}

void merge_group(std::string_view dtype, std::string_view table, std::uintptr_t on_device,
                 std::uintptr_t not_finite, int device, std::uintptr_t queue) {
    const auto group = group_of<cuda::MergeJob>(table, on_device);
    const ElementType type = element_type_from_name("weight", dtype);
    const py::gil_scoped_release release;
    const Place place(device, queue);
    check(cuda::merge(type, group, at<int>(not_finite), place.stream), "merge", device);
}

}  // namespace

// Holds neither Python objects nor state, so that threads may run without the GIL.
PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
    m.doc() =
        "The CUDA kernels of nola-edge; see nola_edge.torch.backends.cuda for what users call.";
    translate_argument_errors();
    m.attr("compiler") = NOLA_CUDA_COMPILER;
    m.attr("architectures") = architectures();
    m.def("expand_at", &expand_at, py::arg("matrix"), py::arg("coefficients"), py::arg("out"),
          py::arg("dtype"), py::arg("device"), py::arg("queue"));
    m.def("project_workspace", &cuda::project_workspace, py::arg("matrix"));
    m.def("project_at", &project_at, py::arg("matrix"), py::arg("grad"), py::arg("dtype"),
          py::arg("out"), py::arg("workspace"), py::arg("device"), py::arg("queue"));
    m.def("merge_at", &merge_at, py::arg("base"), py::arg("out"), py::arg("dtype"),
          py::arg("shape"), py::arg("stride"), py::arg("lora_b"), py::arg("lora_a"),
          py::arg("a_stride"), py::arg("rank"), py::arg("scaling"), py::arg("not_finite"),
          py::arg("device"), py::arg("queue"));
    m.def("plan_expand", &plan_expand, py::arg("tasks"));
    m.def("expand_group", &expand_group, py::arg("basis"), py::arg("seed"), py::arg("dtype"),
          py::arg("table"), py::arg("on_device"), py::arg("device"), py::arg("queue"));
    m.def("plan_project", &plan_project, py::arg("tasks"));
    m.def("project_group", &project_group, py::arg("basis"), py::arg("seed"), py::arg("dtype"),
          py::arg("table"), py::arg("on_device"), py::arg("workspace"), py::arg("device"),
          py::arg("queue"));
    m.def("plan_merge", &plan_merge, py::arg("dtype"), py::arg("tasks"));
    m.def("merge_group", &merge_group, py::arg("dtype"), py::arg("table"), py::arg("on_device"),
          py::arg("not_finite"), py::arg("device"), py::arg("queue"));
}

}  // namespace nola::bindings
