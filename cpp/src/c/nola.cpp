// The C interface: arguments checked and converted, exceptions made into statuses.
// Everything else is hidden.
#pragma GCC visibility push(default)
#include "nola.h"
#pragma GCC visibility pop

#include <algorithm>
#include <string>

#include "arguments.h"
#include "nola/basis.h"
#include "nola/expand.h"
#include "nola/isa.h"
#include "nola/merge.h"
#include "nola/project.h"
#include "nola/quantize.h"

namespace {

using namespace nola::c;

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
    return last_error();
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
        const nola::Factor which = factor_of(factor);
        given("stream", stream) = nola::stream_id(&given("module", module), which);
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
