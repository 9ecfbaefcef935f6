#include <doctest/doctest.h>

#include <cstring>
#include <string>
#include <vector>

#include "adapters/base_fingerprint.h"
#include "files/failure.h"
#include "folder.h"
#include "merge/plan.h"
#include "merge/write.h"
#include "nola/expand.h"
#include "nola/merge.h"
#include "stored.h"

namespace {

using nola::adapters::Module;
using nola::files::Checkpoint;
using nola::merging::Plan;
using nola::merging::WeightedAdapter;
using nola::test::content_of;
using nola::test::Folder;
using nola::test::refusal;

constexpr std::size_t kOutputs = 70;
constexpr std::size_t kInputs = 90;

WeightedAdapter adapter_of(bool transposed) {
    WeightedAdapter made;
    made.path = "adapter";
    made.adapter.config.r = 3;
    made.adapter.config.num_basis_a = made.adapter.config.num_basis_b = 2;
    made.adapter.config.seed = 5;
    made.adapter.config.lora_alpha = 6;
    made.adapter.config.fan_in_fan_out = transposed;
    made.adapter.modules = {{"layer", {0.5F, -1}, {0.25F, 2}}};
    return made;
}

std::vector<float> weights() {
    std::vector<float> values(kOutputs * kInputs);
    for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(i % 37) - 18;
    }
    return values;
}

// A file with one matrix, of rows x cols, in float32.
std::string file_of(const std::vector<float>& values, std::size_t rows, std::size_t cols) {
    std::string data(values.size() * sizeof(float), '\0');
    std::memcpy(data.data(), values.data(), data.size());
    return nola::test::safetensors(
        R"({"layer.weight":{"dtype":"F32","shape":[)" + std::to_string(rows) + "," +
            std::to_string(cols) + R"(],"data_offsets":[0,)" + std::to_string(data.size()) + "]}}",
        data);
}

std::vector<float> factor(const WeightedAdapter& adapter, nola::Factor which,
                          std::size_t features) {
    const Module& module = adapter.adapter.modules[0];
    const nola::Matrix matrix = adapter.adapter.factor(module, which, features);
    std::vector<float> values(matrix.shape.rows * matrix.shape.cols);
    const auto& coefficients = which == nola::Factor::kA ? module.alpha : module.beta;
    nola::expand(matrix, coefficients.data(), values.data(), 1);
    return values;
}

std::vector<float> turned(const std::vector<float>& values, std::size_t rows) {
    const std::size_t cols = values.size() / rows;
    std::vector<float> result(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
        result[i % cols * rows + i / cols] = values[i];
    }
    return result;
}

}  // namespace

TEST_CASE("merging: a file has the bits of the core, whichever way its weight is stored") {
    std::vector<float> wanted = weights();
    const WeightedAdapter plain = adapter_of(false);
    const auto a = factor(plain, nola::Factor::kA, kInputs);
    const auto b = factor(plain, nola::Factor::kB, kOutputs);
    REQUIRE(nola::merge(wanted.data(), nola::ElementType::kFloat32, kOutputs, kInputs,
                        {b.data(), a.data(), 3, 2.0F}, 1));
    for (const bool transposed : {false, true}) {
        const Folder folder;
        const std::size_t rows = transposed ? kInputs : kOutputs;
        const std::size_t cols = transposed ? kOutputs : kInputs;
        const auto stored = [&](const std::vector<float>& values) {
            return file_of(transposed ? turned(values, kOutputs) : values, rows, cols);
        };
        Checkpoint base(folder.write("base.safetensors", stored(weights())));
        const std::vector<WeightedAdapter> adapters = {adapter_of(transposed)};
        const Plan plan(base, adapters, true);
        CHECK(plan.merged() == 1);
        for (const int threads : {1, 3}) {
            const std::string place = folder / (std::to_string(threads) + ".safetensors");
            nola::merging::write_result(base, plan, {place, false, threads, {"", {}, "", ""}});
            CHECK(content_of(place) == stored(wanted));
        }
    }
}

TEST_CASE("merging: what does not fit is refused before anything is written") {
    const Folder folder;
    Checkpoint base(folder.write("base.safetensors", file_of(weights(), kOutputs, kInputs)));
    const auto said = [&](auto change) {
        std::vector<WeightedAdapter> adapters = {adapter_of(false)};
        change(adapters[0].adapter);
        return refusal([&] { Plan(base, adapters, true); });
    };
    CHECK(said([](auto&) {}).empty());
    CHECK(said([](auto& adapter) { adapter.modules[0].name = "model.layer"; }).empty());
    CHECK(said([](auto& adapter) { adapter.modules[0].name = "other"; }).find("have no weight") !=
          std::string::npos);
    CHECK(said([](auto& adapter) {
              adapter.config.shapes_fingerprint = "0";
          }).find("other shapes than these (70 x 90)") != std::string::npos);
    CHECK(said([](auto& adapter) {
              adapter.config.base_fingerprint = "0";
          }).find("--no-check-base") != std::string::npos);
    CHECK(said([](auto& adapter) {
              adapter.config.tensors["layer"] = {"layer.weight", 60, 80};
          }).find("would take outputs 60 to 80") != std::string::npos);
    CHECK(said([](auto& adapter) { adapter.whole_tensors = {"x"}; }).find("as a whole") !=
          std::string::npos);
    CHECK(nola::files::names_in(folder.path()).size() == 1);
}

TEST_CASE("base fingerprint: whole, or in samples") {
    const Folder folder;
    const auto of = [&](std::size_t rows) {
        const std::vector<float> values(rows * 4, 1.0F);
        const Checkpoint base(folder.write("b.safetensors", file_of(values, rows, 4)));
        return nola::adapters::base_fingerprint({"layer"}, {base.find("layer.weight")});
    };
    CHECK(of(2) == "ec9c36eb5a8fcee3f0dc8b24a781a4a3");
    CHECK(of(1000) == "f1bd561e8591049ab8100bf053da1bad");
}
