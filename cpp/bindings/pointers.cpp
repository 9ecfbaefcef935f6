// The operations on addresses, for frameworks whose tensors numpy cannot describe (bfloat16, and
// an array object costs more than a small expansion). The caller vouches for the memory: it is
// contiguous, of the size that the other arguments imply, and alive during the call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "arguments.h"
#include "nola/expand.h"
#include "nola/merge.h"
#include "nola/project.h"

namespace nola::bindings {
namespace py = pybind11;
namespace {

void expand_at(const Matrix& matrix, std::uintptr_t coefficients, std::uintptr_t out,
               int num_threads) {
    const py::gil_scoped_release release;
    expand(matrix, at<const float>(coefficients), at<float>(out), num_threads);
}

void project_at(const Matrix& matrix, std::uintptr_t grad, std::uintptr_t out, int num_threads) {
    const py::gil_scoped_release release;
    project(matrix, at<const float>(grad), at<float>(out), num_threads);
}

bool merge_at(std::uintptr_t weight, std::string_view dtype, Extent shape, std::uintptr_t lora_b,
              std::uintptr_t lora_a, std::size_t rank, double scaling, int num_threads) {
    const ElementType type = element_type_from_name("weight", dtype);
    LowRank update;
    update.b = at<const float>(lora_b);
    update.a = at<const float>(lora_a);
    update.rank = rank;
    update.scaling = float32_of(scaling);
    const py::gil_scoped_release release;
    return merge(at<void>(weight), type, shape.first, shape.second, update, num_threads);
}

void scale_at(std::uintptr_t values, std::size_t count, double factor) {
    const py::gil_scoped_release release;
    scale(at<float>(values), count, factor);
}

}  // namespace

void define_pointer_functions(py::module_& m) {
    m.def("expand_at", &expand_at, py::arg("matrix"), py::arg("coefficients"), py::arg("out"),
          py::arg("num_threads"));
    m.def("project_at", &project_at, py::arg("matrix"), py::arg("grad"), py::arg("out"),
          py::arg("num_threads"));
    m.def("merge_at", &merge_at, py::arg("weight"), py::arg("dtype"), py::arg("shape"),
          py::arg("lora_b"), py::arg("lora_a"), py::arg("rank"), py::arg("scaling"),
          py::arg("num_threads"));
    m.def("scale_at", &scale_at, py::arg("values"), py::arg("count"), py::arg("factor"));
}

}  // namespace nola::bindings
