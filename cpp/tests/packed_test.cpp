#include "adapters/packed.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "adapters/few_bits.h"
#include "files/failure.h"
#include "stored.h"

namespace {

using nola::adapters::NolaAdapter;
using nola::adapters::read_packed;
using nola::test::as_zlib;
using nola::test::memory;
using nola::test::refusal;
using nola::test::safetensors;

const std::string kConfig =
    R"("peft_type":"NOLA","nola_version":1,"r":2,"num_basis_a":3,"num_basis_b":1,"seed":5,)"
    R"("lora_alpha":4)";

std::string entry(const std::string& name, const std::string& type, std::size_t count,
                  std::size_t begin, std::size_t end) {
    return "\"" + name + R"(":{"dtype":")" + type + R"(","shape":[)" + std::to_string(count) +
           R"(],"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// A file of the first format, which has no hash that would notice a change first.
std::string packed(const std::string& about, const std::vector<float>& coefficients) {
    const std::string stored = as_zlib(about);
    const std::size_t bytes = coefficients.size() * sizeof(float);
    const std::string header = R"({"__metadata__":{"format":"nola-packed-1"},)" +
                               entry("coefficients", "F32", coefficients.size(), 0, bytes) + "," +
                               entry("about", "U8", stored.size(), bytes, bytes + stored.size()) +
                               "}";
    std::string data(bytes, '\0');
    std::memcpy(data.data(), coefficients.data(), bytes);
    return safetensors(header, data + stored);
}

std::string about(const std::string& fields = "", const std::string& names = R"(["a","b"])") {
    return "{\"config\":{" + kConfig + fields + "},\"modules\":" + names + "}";
}

const std::vector<float> kCoefficients = {1, 2, 3, 4, 5, 6, 7, 8};

std::string packed_refusal(const std::string& text,
                           const std::vector<float>& coefficients = kCoefficients) {
    const std::string file = packed(text, coefficients);
    return refusal([&] { read_packed(memory(file)); });
}

bool contains(const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("packed: configuration, names and coefficients") {
    const std::string file = packed(about(R"(,"use_rslora":true,"beta_unit":3)"), kCoefficients);
    const NolaAdapter adapter = read_packed(memory(file));
    CHECK(adapter.config.r == 2);
    CHECK(adapter.config.seed == 5);
    CHECK(adapter.config.scaling() == doctest::Approx(4 / 1.4142135623730951 * 3));
    REQUIRE(adapter.modules.size() == 2);
    CHECK(adapter.modules[1].name == "b");
    CHECK(adapter.modules[0].alpha == std::vector<float>{1, 2, 3});
    CHECK(adapter.modules[1].beta == std::vector<float>{8});
    const nola::Matrix matrix = adapter.factor(adapter.modules[0], nola::Factor::kB, 7);
    CHECK(matrix.shape.rows == 7);
    CHECK(matrix.num_basis == 1);
}

TEST_CASE("packed: fields that are not understood are refused") {
    CHECK(packed_refusal(about(R"(,"also":null,"other":[])")).empty());
    CHECK(
        contains(packed_refusal(about(R"(,"use_dora":true)")), "f: use_dora: is True: not under"));
    CHECK(contains(packed_refusal(about(R"(,"basis":"normal")")), "one of rademacher, uniform"));
    CHECK(contains(packed_refusal(about(R"(,"exact_first_alpha":true)")), "coefficient_bits"));
    CHECK(contains(packed_refusal(about(R"(,"beta_unit":0)")), "positive number"));
    CHECK(contains(packed_refusal(about(R"(,"modules_fingerprint":"0")")), "were renamed"));
    CHECK(contains(packed_refusal(about(R"(,"basis_fingerprint":"0")")), "another generator"));
    CHECK(contains(packed_refusal(about(R"(,"shapes_fingerprint":"")")), "a fingerprint"));
    CHECK(contains(packed_refusal(about(R"(,"basis":null,"r":null)")), "duplicate key 'r'"));
    CHECK(contains(packed_refusal(about(R"(,"modules_to_save":["head"])")), "no tensor of it"));
    CHECK(
        contains(packed_refusal(about(R"(,"tensors":{"a":"w[0:2]","b":"w[1:3]"})")), "same part"));
    CHECK(contains(packed_refusal(about(R"(,"tensors":{"c":"w"})")), "neither a module"));
    CHECK(packed_refusal(about(R"(,"tensors":{"a":"w[0:2]","b":null})")).empty());
}

TEST_CASE("packed: names and counts must fit") {
    CHECK(contains(packed_refusal(about("", R"(["a","a"])")), "distinct"));
    CHECK(contains(packed_refusal(about("", R"(["a","b\n"])")), "printable"));
    CHECK(contains(packed_refusal(about("", "[]")), "distinct"));
    CHECK(contains(packed_refusal(about("", R"(["a"])")), "ask for F32 [4]"));
    CHECK(contains(packed_refusal(about(), {1, 2, 3, 4, 5, 6, 7, HUGE_VALF}),
                   "b: beta holds an inf"));
    CHECK(contains(packed_refusal("[]"), "'{' expected"));
    CHECK(contains(packed_refusal(R"({"modules":["a"]})"), "config: is missing"));
    CHECK(contains(packed_refusal(R"({"more":1})"), "more: is not understood"));
}

TEST_CASE("packed: any change of any byte is read, or refused in one line") {
    const std::string file = packed(about(), kCoefficients);
    std::mt19937 random(7);
    int refused = 0;
    for (int i = 0; i < 20'000; ++i) {
        std::string changed = file;
        for (unsigned change = 0; change <= random() % 3; ++change) {
            changed[random() % changed.size()] = static_cast<char>(random());
        }
        if (random() % 4 == 0) {
            changed.resize(random() % changed.size());
        }
        const std::string message = refusal([&] { read_packed(memory(changed)); });
        REQUIRE(message.find('\n') == std::string::npos);
        refused += message.empty() ? 0 : 1;
    }
    CHECK(refused > 10'000);
}

TEST_CASE("few bits: integers, padding and scales") {
    using nola::adapters::unpack;
    const std::string stream = "\xA7\x0C";  // of three bits: 7, 4, 2, 6
    const std::vector<float> wanted = {1.5F, 0, -1, 1};
    CHECK(unpack(stream, 4, 3, 0.5F, nullptr) == wanted);
    const float first = 9;
    CHECK(unpack("\x18", 2, 4, 1, &first) == std::vector<float>{9, -7});
    CHECK_THROWS_WITH(unpack("\xA7\x1C", 4, 3, 1, nullptr), doctest::Contains("after the last"));
    CHECK_THROWS_WITH(unpack("\x80", 2, 4, 1, nullptr), doctest::Contains("no coefficient has"));
    CHECK_THROWS_WITH(unpack("\x89", 2, 4, 1, &first), doctest::Contains("beside the exact one"));
    CHECK_THROWS_WITH(unpack("\x48", 2, 4, 1, nullptr), doctest::Contains("do not fit"));
    CHECK_THROWS_WITH(unpack("\x88", 2, 4, 1.0000001F, nullptr), doctest::Contains("a scale"));
    CHECK_THROWS_WITH(unpack("\x88", 2, 4, 1e-40F, nullptr), doctest::Contains("a scale"));
}
