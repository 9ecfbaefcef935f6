#include "belongs.h"

#include <algorithm>
#include <set>

#include "files/failure.h"
#include "files/folder.h"
#include "files/printable.h"

namespace nola::adapters {

namespace {

using files::Mismatch;
using files::printable;

// An expanded factor has at most as many elements as the weight, or this, 16 MB.
constexpr std::uint64_t kMaxFactor = 1U << 22;

}  // namespace

void check_factor_sizes(const Named& adapter, const files::TensorInfo& weight,
                        const std::string& file) {
    const std::uint64_t rank = adapter.adapter.config.r;
    const std::uint64_t rows = weight.shape[0];
    const std::uint64_t cols = weight.shape[1];
    // A product of sizes is within 64 bits, as the file holds them all or one of them is 0.
    if (std::max(rows, cols) > std::max(rows * cols, kMaxFactor) / rank) {
        throw Mismatch(file, weight.name,
                       "has shape [" + files::joined(weight.shape, ", ") + "]; the rank r = " +
                           std::to_string(rank) + " of " + printable(adapter.path) +
                           " would make its factors larger than the weight itself");
    }
}

void check_shapes(const Named& adapter, const Sizes& sizes, const std::string& base) {
    const std::string& stated = adapter.adapter.config.shapes_fingerprint;
    if (stated.empty() || stated == shapes_fingerprint(adapter.adapter.modules,
                                                       sizes.outputs.data(), sizes.inputs.data())) {
        return;
    }
    std::set<std::string> found;
    for (std::size_t i = 0; i < sizes.outputs.size(); ++i) {
        found.insert(files::joined({sizes.outputs[i], sizes.inputs[i]}, " x "));
    }
    std::string all;
    for (const std::string& shape : found) {
        all += (all.empty() ? "" : ", ") + shape;
    }
    throw Mismatch(base, "shapes_fingerprint",
                   printable(adapter.path) + " was made for modules of other shapes than these (" +
                       printable(all) +
                       "), so its random matrices do not belong here; merge into the base that it "
                       "was trained on");
}

void check_biases(const Named& adapter, const std::vector<std::string>& weights,
                  const std::string& base, const std::function<bool(const std::string&)>& has) {
    if (adapter.adapter.config.bias == "none") {
        return;
    }
    std::vector<std::string> lost;
    for (const std::string& weight : weights) {
        constexpr std::string_view kWeight = ".weight";
        const bool is_weight = files::ends_with(weight, kWeight);
        const std::string bias =
            weight.substr(0, weight.size() - (is_weight ? kWeight.size() : 0)) + ".bias";
        if (has(bias)) {
            lost.push_back(bias);
        }
    }
    if (!lost.empty()) {
        throw files::AdapterFailure(
            adapter.path, "bias",
            "announces trained biases, but the adapter has none, and " + printable(base) + " has " +
                std::to_string(lost.size()) + " of its layers', such as " + printable(lost[0]) +
                "; save the adapter again where it was trained, or write \"none\" in "
                "adapter_config.json to merge without them");
    }
}

}  // namespace nola::adapters
