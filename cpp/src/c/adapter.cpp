// Adapters behind opaque handles.
#pragma GCC visibility push(default)
#include "nola.h"
#pragma GCC visibility pop

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "adapters/factor_layout.h"
#include "adapters/nola_adapter.h"
#include "adapters/packed.h"
#include "arguments.h"
#include "files/input.h"
#include "nola/expand.h"
#include "nola/merge.h"

struct nola_adapter {
    nola::adapters::NolaAdapter adapter;
    std::vector<std::string> tensors;  // of the modules, for their C names
};

namespace {

using namespace nola::c;
using nola::Factor;
using nola::Matrix;
using nola::adapters::interleaved;
using nola::adapters::Module;
using nola::adapters::NolaAdapter;
using nola::adapters::TensorPart;
using nola::adapters::transposed;

constexpr const char* kMemory = "the adapter in memory";

const TensorPart* part_of(const NolaAdapter& adapter, const Module& module) {
    const auto part = adapter.config.tensors.find(module.name);
    return part == adapter.config.tensors.end() ? nullptr : &part->second;
}

nola_status open(const std::shared_ptr<const nola::files::Input>& input, nola_adapter** adapter) {
    auto made = std::make_unique<nola_adapter>();
    made->adapter = nola::adapters::read_packed(input);
    for (const Module& module : made->adapter.modules) {
        const TensorPart* part = part_of(made->adapter, module);
        made->tensors.push_back(part == nullptr ? module.name + ".weight" : part->tensor);
    }
    *adapter = made.release();
    return NOLA_OK;
}

const NolaAdapter& adapter_of(const nola_adapter* handle) {
    return given("adapter", handle).adapter;
}

const Module& module_of(const NolaAdapter& adapter, std::uint64_t index) {
    if (index >= adapter.modules.size()) {
        refuse("module", std::to_string(index) + " is not below num_modules, " +
                             std::to_string(adapter.modules.size()));
    }
    return adapter.modules[static_cast<std::size_t>(index)];
}

Matrix factor(const NolaAdapter& adapter, const Module& module, Factor which,
              std::uint64_t features) {
    Matrix matrix = adapter.factor(module, which, size_of("features", features));
    nola::check_matrix(matrix);
    check_extent("features", matrix.shape.rows, matrix.shape.cols, sizeof(float));
    return matrix;
}

const float* coefficients(const Module& module, Factor which) {
    return which == Factor::kA ? module.alpha.data() : module.beta.data();
}

std::vector<float> expanded(const NolaAdapter& adapter, const Module& module, Factor which,
                            std::size_t features, int num_threads) {
    const Matrix matrix = factor(adapter, module, which, features);
    std::vector<float> values(matrix.shape.rows * matrix.shape.cols);
    nola::expand(matrix, coefficients(module, which), values.data(), num_threads);
    return values;
}

void check_heads(std::uint64_t head_rows, std::size_t rows) {
    if (head_rows != 0 && (head_rows % 2 != 0 || rows % head_rows != 0)) {
        refuse("head_rows", std::to_string(head_rows) + " is not even, or does not divide the " +
                                std::to_string(rows) + " outputs");
    }
}

}  // namespace

nola_status nola_adapter_open(const char* path, nola_adapter** adapter) {
    return guarded([&] {
        given("adapter", adapter) = nullptr;
        return open(std::make_shared<nola::files::FileInput>(&given("path", path)), adapter);
    });
}

nola_status nola_adapter_open_memory(const void* bytes, uint64_t size, nola_adapter** adapter) {
    return guarded([&] {
        given("adapter", adapter) = nullptr;
        check_extent("size", size, 1, 1);
        const auto count = static_cast<std::size_t>(size);
        const auto* begin = array("bytes", static_cast<const char*>(bytes), count);
        return open(std::make_shared<nola::files::MemoryInput>(kMemory, begin, count), adapter);
    });
}

void nola_adapter_close(nola_adapter* adapter) {
    delete adapter;
}

nola_status nola_adapter_get_info(const nola_adapter* adapter, nola_adapter_info* info) {
    return guarded([&] {
        const NolaAdapter& found = adapter_of(adapter);
        nola_adapter_info& filled = given("info", info);
        filled = {};
        filled.num_modules = found.modules.size();
        filled.rank = found.config.r;
        filled.num_basis_a = found.config.num_basis_a;
        filled.num_basis_b = found.config.num_basis_b;
        filled.seed = found.config.seed;
        filled.scaling = found.config.scaling();
        filled.num_whole_tensors = found.whole_tensors.size();
        filled.num_expected = found.expected.size();
        filled.basis = static_cast<nola_basis>(found.config.basis);
        filled.coefficient_bits = found.config.coefficient_bits;
        filled.fan_in_fan_out = found.config.fan_in_fan_out ? 1 : 0;
        return NOLA_OK;
    });
}

nola_status nola_adapter_get_module(const nola_adapter* adapter, uint64_t index,
                                    nola_module* module) {
    return guarded([&] {
        const Module& found = module_of(adapter_of(adapter), index);
        const std::string& tensor = adapter->tensors[static_cast<std::size_t>(index)];
        const TensorPart* part = part_of(adapter->adapter, found);
        const bool has_lines = part != nullptr;
        given("module", module) = {found.name.c_str(), tensor.empty() ? nullptr : tensor.c_str(),
                                   has_lines ? part->begin : 0, has_lines ? part->end : 0};
        return NOLA_OK;
    });
}

nola_status nola_adapter_get_expected(const nola_adapter* adapter, uint64_t index,
                                      nola_expected* expected) {
    return guarded([&] {
        const auto& all = adapter_of(adapter).expected;
        if (index >= all.size()) {
            refuse("index", std::to_string(index) + " is not below num_expected, " +
                                std::to_string(all.size()));
        }
        const auto& found = all[static_cast<std::size_t>(index)];
        given("expected", expected) = {found.name.c_str(), found.kind.c_str(),
                                       found.base_fingerprint.c_str(), found.sha256.c_str()};
        return NOLA_OK;
    });
}

nola_status nola_adapter_check_shapes(const nola_adapter* adapter, const uint64_t* out_features,
                                      const uint64_t* in_features) {
    return guarded([&]() -> nola_status {
        const NolaAdapter& found = adapter_of(adapter);
        const std::string& stated = found.config.shapes_fingerprint;
        const std::string shapes =
            nola::adapters::shapes_fingerprint(found.modules, &given("out_features", out_features),
                                               &given("in_features", in_features));
        if (!stated.empty() && stated != shapes) {
            return failed(NOLA_MISMATCH, "adapter: was trained on modules of other shapes");
        }
        return NOLA_OK;
    });
}

nola_status nola_adapter_factor(const nola_adapter* adapter, uint64_t module, nola_factor which,
                                uint64_t features, uint64_t begin, uint64_t end, float* out,
                                int32_t num_threads) {
    return guarded([&] {
        const NolaAdapter& found = adapter_of(adapter);
        const Module& wanted = module_of(found, module);
        const Factor kind = factor_of(which);
        Matrix matrix = factor(found, wanted, kind, features);
        if (begin > end || end > features) {
            refuse("begin", std::to_string(begin) + ".." + std::to_string(end) + " is not within " +
                                std::to_string(features));
        }
        const bool is_a = kind == Factor::kA;
        (is_a ? matrix.window.col_begin : matrix.window.row_begin) =
            static_cast<std::size_t>(begin);
        (is_a ? matrix.window.col_end : matrix.window.row_end) = static_cast<std::size_t>(end);
        const std::size_t count = matrix.window.rows() * matrix.window.cols();
        nola::expand(matrix, coefficients(wanted, kind), array("out", out, count), num_threads);
        return NOLA_OK;
    });
}

nola_status nola_adapter_merge(const nola_adapter* adapter, uint64_t module,
                               const nola_weight* weight, uint64_t head_rows, int32_t num_threads) {
    return guarded([&]() -> nola_status {
        const NolaAdapter& found = adapter_of(adapter);
        const Module& wanted = module_of(found, module);
        const nola::Weight place = weight_of(weight);
        const bool turned = found.config.fan_in_fan_out;
        const std::size_t outputs = turned ? place.shape.cols : place.shape.rows;
        const std::size_t inputs = turned ? place.shape.rows : place.shape.cols;
        check_heads(head_rows, outputs);
        const auto rank = static_cast<std::size_t>(found.config.r);
        std::vector<float> a = expanded(found, wanted, Factor::kA, inputs, num_threads);
        std::vector<float> b = expanded(found, wanted, Factor::kB, outputs, num_threads);
        if (head_rows != 0) {
            b = interleaved(b, rank, static_cast<std::size_t>(head_rows));
        }
        if (turned) {
            a = transposed(std::exchange(b, transposed(a, rank, inputs)), outputs, rank);
        }
        float scaling = 1.0F;
        nola::scale(&scaling, 1, found.config.scaling());
        const nola::LowRank update{b.data(), a.data(), rank, scaling};
        return nola::merge(place, update, num_threads)
                   ? NOLA_OK
                   : failed(NOLA_NOT_FINITE,
                            "weight: a factor or a merged element is infinite or NaN");
    });
}
