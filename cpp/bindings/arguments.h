// Arguments that both bindings of the core share.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "nola/basis.h"
#include "nola/merge.h"

namespace nola::bindings {

// Where the type is wrong: nola_edge.errors.ArgumentTypeError in Python, as std::invalid_argument
// is ArgumentError there. Both begin with the argument's name.
class ArgumentTypeError : public std::invalid_argument {
public:
    using std::invalid_argument::invalid_argument;
};

inline void raise_argument_error(const char* type, const std::string& text) {
    const std::size_t end = text.find(": ");
    const bool named = end != std::string::npos && text.find(' ') > end;
    const pybind11::object error = pybind11::module_::import("nola_edge.errors")
                                       .attr(type)(named ? text.substr(end + 2) : text);
    if (named) {
        error.attr("field") = text.substr(0, end);
    }
    PyErr_SetObject(pybind11::type::handle_of(error).ptr(), error.ptr());
}

inline void translate_argument_errors() {
    pybind11::register_local_exception_translator([](std::exception_ptr pending) {
        try {
            std::rethrow_exception(std::move(pending));
        } catch (const ArgumentTypeError& error) {
            raise_argument_error("ArgumentTypeError", error.what());
        } catch (const std::invalid_argument& error) {
            raise_argument_error("ArgumentError", error.what());
        }
    });
}

using Extent = std::pair<std::size_t, std::size_t>;

inline Basis basis_from_name(std::string_view name) {
    if (name == "rademacher") {
        return Basis::kRademacher;
    }
    if (name == "uniform") {
        return Basis::kUniform;
    }
    throw std::invalid_argument("basis: '" + std::string(name) +
                                "' is not known; use 'rademacher' or 'uniform'");
}

// By name, since numpy and torch spell their types alike.
inline ElementType element_type_from_name(const char* argument, std::string_view dtype) {
    if (dtype == "float32") {
        return ElementType::kFloat32;
    }
    if (dtype == "float16") {
        return ElementType::kFloat16;
    }
    if (dtype == "bfloat16") {
        return ElementType::kBFloat16;
    }
    throw ArgumentTypeError(std::string(argument) + ": must be float32, float16 or bfloat16, got " +
                            std::string(dtype));
}

template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);  // NOLINT(performance-no-int-to-ptr)
}

// A scaling as the specification rounds it; a caster would round as the caller's environment says.
inline float float32_of(double value) {
    float rounded = 1.0F;
    scale(&rounded, 1, value);
    return rounded;
}

// expand, project and merge on addresses instead of arrays, for tensors of other frameworks.
void define_pointer_functions(pybind11::module_& m);

}  // namespace nola::bindings

// A matrix comes as a tuple: basis, seed, stream, num_basis, shape, rows, cols.
template <>
struct pybind11::detail::type_caster<nola::Matrix> {
    PYBIND11_TYPE_CASTER(nola::Matrix, const_name("tuple"));

    bool load(handle source, bool convert) {
        using nola::bindings::Extent;
        using Fields = std::tuple<std::string_view, std::uint64_t, std::uint64_t, std::size_t,
                                  Extent, Extent, Extent>;
        make_caster<Fields> fields;
        if (!fields.load(source, convert)) {
            return false;
        }
        const auto [basis, seed, stream, num_basis, shape, rows, cols] = cast_op<Fields>(fields);
        value = {nola::bindings::basis_from_name(basis),
                 seed,
                 stream,
                 num_basis,
                 {shape.first, shape.second},
                 {rows.first, rows.second, cols.first, cols.second}};
        return true;
    }
};
