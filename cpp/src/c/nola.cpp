// The C interface: arguments checked and converted, exceptions made into statuses.
// Everything else is hidden.
#pragma GCC visibility push(default)
#include "nola.h"
#pragma GCC visibility pop

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "nola/basis.h"
#include "nola/expand.h"
#include "nola/isa.h"
#include "nola/merge.h"
#include "nola/project.h"
#include "nola/quantize.h"

namespace {

// Of a fixed size: to note that there is no memory takes none.
thread_local char last_error[512] = "";

nola_status failed(nola_status status, std::string_view message) noexcept {
    const std::size_t length = std::min(message.size(), sizeof last_error - 1);
    std::memcpy(last_error, message.data(), length);
    last_error[length] = '\0';
    return status;
}

// Does the work of a function; what it throws becomes its status.
template <class Work>
nola_status guarded(const Work& work) noexcept {
    try {
        return work();
    } catch (const std::invalid_argument& error) {
        return failed(NOLA_INVALID_ARGUMENT, error.what());
    } catch (const std::bad_alloc&) {
        return failed(NOLA_OUT_OF_MEMORY, "there is too little memory");
    } catch (const std::exception& error) {
        return failed(NOLA_INTERNAL_ERROR, error.what());
    } catch (...) {
        return failed(NOLA_INTERNAL_ERROR, "an unknown exception");
    }
}

[[noreturn]] void refuse(std::string_view name, std::string_view reason) {
    throw std::invalid_argument(std::string(name) + ": " + std::string(reason));
}

template <class T>
T& given(const char* name, T* pointer) {
    if (pointer == nullptr) {
        refuse(name, "null");
    }
    return *pointer;
}

// An array, which may be null if it is empty.
template <class T>
T* array(const char* name, T* pointer, std::size_t count) {
    return count == 0 ? pointer : &given(name, pointer);
}

// Enumerators are numbers here: any may come from outside.
template <class T>
T chosen(const char* name, std::int32_t value, std::int32_t last) {
    if (value < 0 || value > last) {
        refuse(name, std::to_string(value) + " is not in 0.." + std::to_string(last));
    }
    return static_cast<T>(value);
}

std::size_t size_of(const char* name, std::uint64_t value) {
    if (value > std::numeric_limits<std::size_t>::max()) {
        refuse(name, std::to_string(value) + " is more than can be in memory");
    }
    return static_cast<std::size_t>(value);
}

// No array can have more bytes than the difference of two pointers can say, so that no address
// computed from a size that passes here wraps around.
void check_extent(const char* name, std::uint64_t rows, std::uint64_t cols, std::size_t bytes) {
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::ptrdiff_t>::max());
    if (cols != 0 && rows > kMost / bytes / cols) {
        refuse(name, std::to_string(rows) + " x " + std::to_string(cols) + " elements of " +
                         std::to_string(bytes) + " bytes are more than can be in memory");
    }
}

nola::Matrix matrix_of(const nola_matrix* given_matrix) {
    const nola_matrix& matrix = given("matrix", given_matrix);
    nola::Matrix made;
    made.basis = chosen<nola::Basis>("basis", matrix.basis, NOLA_UNIFORM);
    made.seed = matrix.seed;
    made.stream = matrix.stream;
    made.num_basis = size_of("num_basis", matrix.num_basis);
    made.shape = {size_of("rows", matrix.rows), size_of("cols", matrix.cols)};
    made.window = {size_of("row_begin", matrix.row_begin), size_of("row_end", matrix.row_end),
                   size_of("col_begin", matrix.col_begin), size_of("col_end", matrix.col_end)};
    nola::check_matrix(made);
    check_extent("matrix", made.window.rows(), made.window.cols(), sizeof(float));
    check_extent("num_basis", made.num_basis, 1, sizeof(float));
    return made;
}

std::size_t elements_of(const nola::Window& window) {
    return window.rows() * window.cols();
}

nola::Weight weight_of(const nola_weight* given_weight) {
    const nola_weight& weight = given("weight", given_weight);
    nola::Weight made;
    made.base = weight.base;
    made.out = weight.out;
    made.type = chosen<nola::ElementType>("type", weight.type, NOLA_BFLOAT16);
    made.shape = {size_of("rows", weight.rows), size_of("cols", weight.cols)};
    made.base_stride = size_of("base_stride", weight.base_stride);
    made.out_stride = size_of("out_stride", weight.out_stride);
    const std::size_t bytes = nola::element_size(made.type);
    check_extent("weight", made.shape.rows, std::max(made.base_stride, made.shape.cols), bytes);
    check_extent("weight", made.shape.rows, std::max(made.out_stride, made.shape.cols), bytes);
    return made;
}

nola::LowRank update_of(const nola_update* given_update, const nola::Shape& shape) {
    const nola_update& update = given("update", given_update);
    check_extent("b", shape.rows, update.rank, sizeof(float));
    check_extent("a", update.rank, shape.cols, sizeof(float));
    float scaling = 1.0F;
    nola::scale(&scaling, 1, update.scaling);
    return {update.b, update.a, size_of("rank", update.rank), scaling};
}

// How many blocks, whose bytes and values can be in memory.
std::size_t block_count(std::uint64_t count) {
    check_extent("count", count, nola::kBlockElements, sizeof(float));
    return static_cast<std::size_t>(count);
}

nola::BlockType block_type(nola_block_type type) {
    return chosen<nola::BlockType>("type", type, NOLA_Q8_0);
}

}  // namespace

uint32_t nola_abi_version(void) {
    return NOLA_ABI_VERSION;
}

const char* nola_version(void) {
    return NOLA_VERSION;
}

const char* nola_last_error(void) {
    return last_error;
}

nola_status nola_isa(const char** name) {
    return guarded([&] {
        // A literal, which ends with a null character.
        given("name", name) = nola::isa_name(nola::active_isa()).data();
        return NOLA_OK;
    });
}

nola_status nola_force_isa(const char* name) {
    return guarded([&] {
        nola::force_isa(nola::isa_from_name(&given("name", name)));
        return NOLA_OK;
    });
}

nola_status nola_stream_id(const char* module, nola_factor factor, uint64_t* stream) {
    return guarded([&] {
        if (factor != NOLA_FACTOR_A && factor != NOLA_FACTOR_B) {
            refuse("factor", std::to_string(factor) + " is neither 'A' nor 'B'");
        }
        given("stream", stream) =
            nola::stream_id(&given("module", module), static_cast<nola::Factor>(factor));
        return NOLA_OK;
    });
}

nola_status nola_expand(const nola_matrix* matrix, const float* coefficients, float* out,
                        int32_t num_threads) {
    return guarded([&] {
        const nola::Matrix made = matrix_of(matrix);
        nola::expand(made, array("coefficients", coefficients, made.num_basis),
                     array("out", out, elements_of(made.window)), num_threads);
        return NOLA_OK;
    });
}

nola_status nola_project(const nola_matrix* matrix, const float* grad, float* out,
                         int32_t num_threads) {
    return guarded([&] {
        const nola::Matrix made = matrix_of(matrix);
        nola::project(made, array("grad", grad, elements_of(made.window)),
                      array("out", out, made.num_basis), num_threads);
        return NOLA_OK;
    });
}

nola_status nola_merge(const nola_weight* weight, const nola_update* update, int32_t num_threads) {
    return guarded([&] {
        const nola::Weight place = weight_of(weight);
        const bool is_finite = nola::merge(place, update_of(update, place.shape), num_threads);
        return is_finite ? NOLA_OK
                         : failed(NOLA_NOT_FINITE,
                                  "weight: a factor or a merged element is infinite or NaN");
    });
}

nola_status nola_scale(float* values, uint64_t count, double factor) {
    return guarded([&] {
        check_extent("count", count, 1, sizeof(float));
        const auto number = static_cast<std::size_t>(count);
        nola::scale(array("values", values, number), number, factor);
        return NOLA_OK;
    });
}

nola_status nola_dequantize(nola_block_type type, const void* blocks, uint64_t count, float* values,
                            int32_t num_threads) {
    return guarded([&] {
        nola::dequantize(block_type(type), blocks, block_count(count), values, num_threads);
        return NOLA_OK;
    });
}

nola_status nola_quantize(nola_block_type type, const float* values, uint64_t count, void* blocks,
                          int32_t num_threads) {
    return guarded([&] {
        nola::quantize(block_type(type), values, block_count(count), blocks, num_threads);
        return NOLA_OK;
    });
}

nola_status nola_quantize_amplified(nola_block_type type, const float* base, const float* wanted,
                                    uint64_t count, void* blocks, int32_t num_threads) {
    return guarded([&] {
        nola::quantize_amplified(block_type(type), base, wanted, block_count(count), blocks,
                                 num_threads);
        return NOLA_OK;
    });
}
