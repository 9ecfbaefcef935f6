// The bindings of the core: argument checks and nothing else. The functions that users see, with
// their documentation, are in python/nola_edge/ops.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "fp_environment.h"
#include "nola/basis.h"
#include "nola/expand.h"
#include "nola/isa.h"
#include "nola/merge.h"
#include "nola/philox.h"
#include "nola/project.h"
#include "nola/quantize.h"

namespace py = pybind11;

namespace {

using nola::bindings::ArgumentTypeError;
using nola::bindings::basis_from_name;

std::string describe(const py::array& array) {
    std::string text = py::str(array.dtype()).cast<std::string>() + " (";
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(array.shape(axis));
    }
    return text + (array.ndim() == 1 ? ",)" : ")");
}

bool is_contiguous(const py::array& array) {
    return (array.flags() & py::array::c_style) != 0;
}

// The array itself, or a copy where its elements are not aligned, which the core refuses.
py::array aligned(const py::array& array) {
    const bool is_aligned = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    return is_aligned ? array : py::array(array.attr("copy")());
}

// A float32, C-contiguous array of `ndim` dimensions; it is replaced by a copy if not aligned.
const float* float_data(py::array& array, const char* name, py::ssize_t ndim) {
    if (!array.dtype().equal(py::dtype::of<float>())) {
        throw ArgumentTypeError(std::string(name) + ": must be float32, got " + describe(array));
    }
    if (array.ndim() != ndim) {
        throw std::invalid_argument(std::string(name) + ": must have " + std::to_string(ndim) +
                                    " dimension(s), got " + describe(array));
    }
    if (!is_contiguous(array)) {
        throw std::invalid_argument(std::string(name) + ": must be C-contiguous; pass a copy");
    }
    array = aligned(array);
    return static_cast<const float*>(array.data());
}

std::size_t extent(const py::array& array, py::ssize_t axis) {
    return static_cast<std::size_t>(array.shape(axis));
}

py::array_t<float> expand(const nola::Matrix& matrix, py::array coefficients, int num_threads) {
    const float* data = float_data(coefficients, "coefficients", 1);
    if (extent(coefficients, 0) != matrix.num_basis) {
        throw std::invalid_argument("coefficients: are not one for each of " +
                                    std::to_string(matrix.num_basis) + " bases, got " +
                                    describe(coefficients));
    }
    nola::check_matrix(matrix);
    py::array_t<float> out({matrix.window.rows(), matrix.window.cols()});
    float* result = out.mutable_data();
    {
        const py::gil_scoped_release release;
        nola::expand(matrix, data, result, num_threads);
    }
    return out;
}

py::array_t<float> project(const nola::Matrix& matrix, py::array grad, int num_threads) {
    const float* data = float_data(grad, "grad", 2);
    nola::check_matrix(matrix);
    const nola::Window& window = matrix.window;
    if (extent(grad, 0) != window.rows() || extent(grad, 1) != window.cols()) {
        throw std::invalid_argument("grad: shape of " + describe(grad) +
                                    " is not that of the slice, (" + std::to_string(window.rows()) +
                                    ", " + std::to_string(window.cols()) + ")");
    }
    py::array_t<float> out(static_cast<py::ssize_t>(matrix.num_basis));
    float* result = out.mutable_data();
    bool finished = false;
    {
        const py::gil_scoped_release release;
        const auto stopped = [] {
            const py::gil_scoped_acquire acquire;
            return PyErr_CheckSignals() != 0;
        };
        finished = nola::project(matrix, data, result, num_threads, stopped);
    }
    if (!finished) {
        throw py::error_already_set();  // what a signal's handler raised
    }
    return out;
}

// By name, since bfloat16 is a type of the ml_dtypes package, which need not be installed.
nola::ElementType element_type(const py::array& weight) {
    const auto name = weight.dtype().attr("name").cast<std::string>();
    const bool native = weight.dtype().attr("isnative").cast<bool>();
    if (native && name == "float32") {
        return nola::ElementType::kFloat32;
    }
    if (native && name == "float16") {
        return nola::ElementType::kFloat16;
    }
    if (native && name == "bfloat16") {
        return nola::ElementType::kBFloat16;
    }
    throw ArgumentTypeError("weight: must be float32, float16 or bfloat16, got " +
                            describe(weight));
}

// Bytes from row to row, of an array whose rows are contiguous.
py::ssize_t row_bytes(const py::array& array) {
    return array.shape(0) < 2 ? array.shape(1) * array.itemsize() : array.strides(0);
}

// Elements from row to row, of an aligned array: whole ones.
std::size_t row_stride(const py::array& array) {
    return static_cast<std::size_t>(row_bytes(array) / array.itemsize());
}

// Refuses an array that is not a matrix of contiguous rows, in order and without overlap.
void check_rows(const py::array& array, const char* name) {
    if (array.ndim() != 2) {
        throw std::invalid_argument(std::string(name) + ": must have 2 dimensions, got " +
                                    describe(array));
    }
    const bool side_by_side = array.shape(1) < 2 || array.strides(1) == array.itemsize();
    const bool one_after_another =
        array.shape(0) < 2 || array.strides(0) >= array.shape(1) * array.itemsize();
    if (array.size() != 0 && !(side_by_side && one_after_another)) {
        throw std::invalid_argument(std::string(name) + ": must have contiguous rows");
    }
}

bool is_same_memory(const py::array& a, const py::array& b) {
    return a.data() == b.data() && row_bytes(a) == row_bytes(b);
}

bool overlap(const py::array& a, const py::array& b) {
    const auto end = [](const py::array& array) {
        const auto* last = static_cast<const char*>(array.data());
        for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
            last += (array.shape(axis) - 1) * array.strides(axis);
        }
        return last + array.itemsize();
    };
    return a.size() != 0 && b.size() != 0 && static_cast<const char*>(a.data()) < end(b) &&
           static_cast<const char*>(b.data()) < end(a);
}

// Refuses an array that cannot take the merged `weight`.
void check_out(const py::array& out, const char* name, const py::array& weight) {
    check_rows(out, name);
    if (!out.writeable()) {
        throw std::invalid_argument(std::string(name) + ": is read-only; pass a writable copy");
    }
    if (!out.dtype().equal(weight.dtype()) || out.shape(0) != weight.shape(0) ||
        out.shape(1) != weight.shape(1)) {
        throw std::invalid_argument(std::string(name) + ": must be " + describe(weight) +
                                    " like weight, got " + describe(out));
    }
    if (overlap(out, weight) && !is_same_memory(out, weight)) {
        throw std::invalid_argument(std::string(name) +
                                    ": overlaps weight in memory, and is not the same");
    }
}

nola::LowRank checked_factors(py::array& lora_b, py::array& lora_a, const py::array& weight) {
    nola::LowRank update;
    update.b = float_data(lora_b, "lora_b", 2);
    update.a = float_data(lora_a, "lora_a", 2);
    update.rank = extent(lora_a, 0);
    if (extent(lora_b, 0) != extent(weight, 0) || extent(lora_b, 1) != update.rank) {
        throw std::invalid_argument("lora_b: must be (" + std::to_string(weight.shape(0)) + ", " +
                                    std::to_string(update.rank) +
                                    "), rows of weight by rows of lora_a;"
                                    " got " +
                                    describe(lora_b));
    }
    if (extent(lora_a, 1) != extent(weight, 1)) {
        throw std::invalid_argument("lora_a: must have " + std::to_string(weight.shape(1)) +
                                    " columns like weight, got " + describe(lora_a));
    }
    return update;
}

// `out` may be `weight`.
bool merge(const py::array& weight, const py::array& out, py::array lora_b, py::array lora_a,
           double scaling, int num_threads) {
    const char* written = out.is(weight) ? "weight" : "out";
    nola::Weight merged;
    merged.type = element_type(weight);
    check_rows(weight, "weight");
    check_out(out, written, weight);
    const bool shared = overlap(out, lora_b) || overlap(out, lora_a);
    nola::LowRank update = checked_factors(lora_b, lora_a, weight);
    update.scaling = nola::bindings::float32_of(scaling);
    if (shared) {
        throw std::invalid_argument(std::string(written) +
                                    ": overlaps a factor in memory; pass a copy of the factor");
    }
    py::array target = aligned(out);
    const py::array base = is_same_memory(weight, out) ? target : aligned(weight);
    merged.shape = {extent(weight, 0), extent(weight, 1)};
    merged.base = base.data();
    merged.base_stride = row_stride(base);
    merged.out = target.mutable_data();
    merged.out_stride = row_stride(target);
    bool finite = false;
    {
        const py::gil_scoped_release release;
        finite = nola::merge(merged, update, num_threads);
    }
    if (!target.is(out)) {
        out.attr("__setitem__")(py::ellipsis(), target);
    }
    return finite;
}

nola::BlockType block_type_from_name(std::string_view name) {
    constexpr std::string_view kNames[] = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"};
    for (std::size_t type = 0; type < std::size(kNames); ++type) {
        if (name == kNames[type]) {
            return static_cast<nola::BlockType>(type);
        }
    }
    throw std::invalid_argument("kind: '" + std::string(name) +
                                "' is not known; use Q4_0, Q4_1, Q5_0, Q5_1 or Q8_0");
}

// Refuses rows that are not whole blocks of so many items, and returns how many blocks a row has.
std::size_t blocks_of_row(const py::array& rows, const char* name, std::size_t items) {
    if (rows.ndim() != 2) {
        throw std::invalid_argument(std::string(name) + ": must have 2 dimensions, got " +
                                    describe(rows));
    }
    if (extent(rows, 1) % items != 0) {
        throw std::invalid_argument(std::string(name) + ": must have rows of whole blocks of " +
                                    std::to_string(items) + ", got " + describe(rows));
    }
    return extent(rows, 1) / items;
}

const std::uint8_t* byte_data(const py::array& array, const char* name) {
    if (!array.dtype().equal(py::dtype::of<std::uint8_t>())) {
        throw ArgumentTypeError(std::string(name) + ": must be uint8, got " + describe(array));
    }
    if (!is_contiguous(array)) {
        throw std::invalid_argument(std::string(name) + ": must be C-contiguous; pass a copy");
    }
    return static_cast<const std::uint8_t*>(array.data());
}

py::array_t<float> dequantize(std::string_view kind, const py::array& rows, int num_threads) {
    const nola::BlockType type = block_type_from_name(kind);
    const std::uint8_t* data = byte_data(rows, "rows");
    const std::size_t blocks = blocks_of_row(rows, "rows", nola::block_bytes(type));
    py::array_t<float> out({extent(rows, 0), blocks * nola::kBlockElements});
    float* result = out.mutable_data();
    const std::size_t count = extent(rows, 0) * blocks;
    {
        const py::gil_scoped_release release;
        nola::dequantize(type, data, count, result, num_threads);
    }
    return out;
}

py::array_t<std::uint8_t> quantize(std::string_view kind, py::array values, int num_threads) {
    const nola::BlockType type = block_type_from_name(kind);
    const float* data = float_data(values, "values", 2);
    const std::size_t blocks = blocks_of_row(values, "values", nola::kBlockElements);
    py::array_t<std::uint8_t> out({extent(values, 0), blocks * nola::block_bytes(type)});
    std::uint8_t* result = out.mutable_data();
    const std::size_t count = extent(values, 0) * blocks;
    {
        const py::gil_scoped_release release;
        nola::quantize(type, data, count, result, num_threads);
    }
    return out;
}

// Refuses a matrix that has not the shape of `base`.
void check_like_base(const py::array& array, const char* name, const py::array& base) {
    if (extent(array, 0) != extent(base, 0) || extent(array, 1) != extent(base, 1)) {
        throw std::invalid_argument(std::string(name) + ": must be " + describe(base) +
                                    " like base, got " + describe(array));
    }
}

py::array_t<std::uint8_t> quantize_amplified(std::string_view kind, py::array base,
                                             py::array wanted, int num_threads) {
    const nola::BlockType type = block_type_from_name(kind);
    const float* before = float_data(base, "base", 2);
    const float* after = float_data(wanted, "wanted", 2);
    check_like_base(wanted, "wanted", base);
    const std::size_t blocks = blocks_of_row(base, "base", nola::kBlockElements);
    py::array_t<std::uint8_t> out({extent(base, 0), blocks * nola::block_bytes(type)});
    std::uint8_t* result = out.mutable_data();
    const std::size_t count = extent(base, 0) * blocks;
    {
        const py::gil_scoped_release release;
        nola::quantize_amplified(type, before, after, count, result, num_threads);
    }
    return out;
}

std::tuple<double, double, double> change_sums(py::array base, py::array wanted, py::array got) {
    const float* values[] = {float_data(base, "base", 2), float_data(wanted, "wanted", 2),
                             float_data(got, "got", 2)};
    check_like_base(wanted, "wanted", base);
    check_like_base(got, "got", base);
    const auto count = static_cast<std::size_t>(base.size());
    const py::gil_scoped_release release;
    const nola::ChangeSums sums = nola::change_sums(values[0], values[1], values[2], count);
    return {sums.wanted, sums.common, sums.got};
}

std::uint64_t stream_id(std::string_view module, std::string_view factor) {
    if (factor != "A" && factor != "B") {
        throw std::invalid_argument("factor: '" + std::string(factor) + "' is neither 'A' nor 'B'");
    }
    return nola::stream_id(module, factor == "A" ? nola::Factor::kA : nola::Factor::kB);
}

py::list isa_names(const std::vector<nola::Isa>& isas) {
    py::list names;
    for (const nola::Isa isa : isas) {
        names.append(py::str(std::string(nola::isa_name(isa))));
    }
    return names;
}

}  // namespace

// Holds no Python object and no state but atomics, so that threads may run without the GIL.
PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "The C++ core of nola-edge; see nola_edge.ops for the public functions.";
    nola::bindings::translate_argument_errors();
    m.attr("__version__") = NOLA_VERSION;
    m.attr("compiler") = NOLA_COMPILER;
#ifdef NOLA_WITH_OPENMP
    m.attr("openmp") = true;
#else
    m.attr("openmp") = false;
#endif
    m.def("fnv1a", [](std::string_view text) { return nola::fnv1a(text); }, py::arg("text"));
    m.def("stream_id", &stream_id, py::arg("module"), py::arg("factor"));
    m.def(
        "gain",
        [](std::string_view basis, std::size_t num_basis) {
            return nola::gain(basis_from_name(basis), num_basis);
        },
        py::arg("basis"), py::arg("num_basis"));
    m.def("philox", &nola::philox4x32_10, py::arg("counter"), py::arg("key"));
    m.def("expand", &expand, py::arg("matrix"), py::arg("coefficients"), py::arg("num_threads"));
    m.def("project", &project, py::arg("matrix"), py::arg("grad"), py::arg("num_threads"));
    m.def("merge", &merge, py::arg("weight"), py::arg("out"), py::arg("lora_b"), py::arg("lora_a"),
          py::arg("scaling"), py::arg("num_threads"));
    m.def("dequantize", &dequantize, py::arg("kind"), py::arg("rows"), py::arg("num_threads"));
    m.def("quantize", &quantize, py::arg("kind"), py::arg("values"), py::arg("num_threads"));
    m.def("quantize_amplified", &quantize_amplified, py::arg("kind"), py::arg("base"),
          py::arg("wanted"), py::arg("num_threads"));
    m.def("change_sums", &change_sums, py::arg("base"), py::arg("wanted"), py::arg("got"));
    m.def(
        "in_specified_environment",
        [](const py::function& work) {
            const nola::FpEnvironment environment;
            return work();
        },
        py::arg("work"));
    m.def("compiled_isas", [] { return isa_names(nola::compiled_isas()); });
    m.def("supported_isas", [] { return isa_names(nola::supported_isas()); });
    m.def("active_isa", [] { return std::string(nola::isa_name(nola::active_isa())); });
    m.def(
        "force_isa", [](std::string_view name) { nola::force_isa(nola::isa_from_name(name)); },
        py::arg("name"));
    nola::bindings::define_pointer_functions(m);
}
