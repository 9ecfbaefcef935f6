#include <doctest/doctest.h>

#include <cmath>
#include <memory>
#include <string>
#include <string_view>

#include "files/digest.h"
#include "files/failure.h"
#include "files/json.h"
#include "files/printable.h"
#include "files/safetensors.h"
#include "stored.h"

namespace {

using nola::files::Failure;
using nola::files::is_printable;
using nola::files::Json;
using nola::files::printable;
using nola::files::SafetensorsFile;
using nola::files::shortest;
using nola::test::memory;
using nola::test::refusal;
using nola::test::safetensors;

std::string json_refusal(const std::string& text) {
    return refusal([&] { Json(text, "f"); });
}

std::string header_refusal(const std::string& header, std::size_t data = 8) {
    const std::string file = safetensors(header, std::string(data, '\0'));
    return refusal([&] { SafetensorsFile{memory(file)}; });
}

}  // namespace

TEST_CASE("shortest: as Python writes it") {
    CHECK(shortest(0.0) == "0.0");
    CHECK(shortest(-4.0) == "-4.0");
    CHECK(shortest(0.1) == "0.1");
    CHECK(shortest(0.1F) == "0.1");
    CHECK(shortest(123456.0) == "123456.0");
    CHECK(shortest(12.75) == "12.75");
    CHECK(shortest(0.0001) == "0.0001");
    CHECK(shortest(1.5e-5) == "1.5e-05");
    CHECK(shortest(1e15) == "1000000000000000.0");
    CHECK(shortest(-1e16) == "-1e+16");
    CHECK(shortest(1e300) == "1e+300");
    CHECK(shortest(std::nan("")) == "nan");
}

TEST_CASE("printable: what would not show is escaped, what is long is cut") {
    CHECK(printable("é 漢 a") == "é 漢 a");
    CHECK(printable("a\nb\x1b[0m") == "a\\nb\\x1b[0m");
    CHECK(printable("\xe2\x80\xae") == "\\u202e");               // a mark that turns the direction
    CHECK(printable("\xf3\xa0\x84\x80") == "\xf3\xa0\x84\x80");  // U+E0100 selects a variant
    CHECK(printable("\xf3\xa0\x80\x81") == "\\U000e0001");
    CHECK(printable("\xff\xc0\x80") == "\\xff\\xc0\\x80");  // no UTF-8
    CHECK(printable("abcdef", 6) == "abcdef");
    CHECK(printable("abcdefg", 6) == "abcde…");
    CHECK(printable("ab\nd", 4) == "ab\\…");
    CHECK(is_printable(""));
    CHECK_FALSE(is_printable(std::string_view("a\0b", 3)));
    CHECK_FALSE(is_printable("\xed\xa0\x80"));  // half of a surrogate pair
}

TEST_CASE("json: what readers could understand in two ways is refused") {
    CHECK(json_refusal(R"({"a": [1, 2.5, null, true, "é", "\ud83d\ude00"]})").empty());
    CHECK(json_refusal(R"({"a": 1, "a": 2})") == "f: duplicate key 'a' in JSON");
    CHECK(json_refusal(R"({"a": 1, "\u0061": 2})") == "f: duplicate key 'a' in JSON");
    CHECK(json_refusal(std::string(64, '[') + std::string(64, ']')).empty());
    CHECK(json_refusal(std::string(65, '[') + std::string(65, ']')).find("too deeply") !=
          std::string::npos);
    CHECK(json_refusal(std::string(308, '1')).empty());
    for (const char* text : {"", "{", "NaN", "-Infinity", "1e400", "\"\\ud800\"", "[1] 2", "[1,]",
                             "\"\xff\"", "// a\n1", "\xef\xbb\xbf{}"}) {
        CAPTURE(text);
        CHECK_FALSE(json_refusal(text).empty());
    }
    CHECK_FALSE(json_refusal(std::string(309, '1')).empty());
}

TEST_CASE("json: memory is bounded, whatever a text holds") {
    const std::string text = "[" + std::string(std::size_t{10} << 20, ' ');
    std::string many = "[1";
    while (many.size() < (std::size_t{12} << 20)) {
        many += ",1";
    }
    CHECK(json_refusal(many + "]") == "f: has more JSON values than 64 MB can hold");
    CHECK(json_refusal(text + "1]").empty());
}

TEST_CASE("safetensors: a header is checked completely") {
    const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    CHECK(header_refusal(good).empty());
    CHECK(header_refusal(good, 4).find("truncated") != std::string::npos);
    CHECK(header_refusal(good, 9).find("1 bytes at the end belong to no tensor") !=
          std::string::npos);
    const std::pair<const char*, const char*> cases[] = {
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "run backwards"},
        {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "does not take the 8 bytes"},
        {R"({"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}})", "dtype 'F99' is unknown"},
        {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "64 sizes"},
        {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "64 sizes"},
        {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", "not two offsets"},
        {R"({"a":{"dtype":"F32","shape":[2]}})", "exactly dtype, shape and data_offsets"},
        {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
         R"("b":{"dtype":"U8","shape":[5],"data_offsets":[3,8]}})",
         "b: overlaps another tensor"},
        {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
         "4 bytes before it belong to no tensor"},
        {R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,8],"data_offsets":[0,8]}})",
         "does not take"},
        {R"({"__metadata__":{"a":1}})", "must map strings to strings"},
        {R"([])", "does not begin with '{'"},
    };
    for (const auto& one : cases) {
        CAPTURE(one.first);
        CHECK(header_refusal(one.first).find(one.second) != std::string::npos);
    }
}

TEST_CASE("safetensors: what is another kind of file is called so") {
    using namespace std::string_literals;
    const std::pair<std::string, const char*> cases[] = {
        {"", "has 0 bytes"},
        {"GGUF\3\0\0\0"s, "GGUF file"},
        {"PK\3\4\0\0\0\0\0\0"s, "torch.save"},
        {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{", "the header claims 18446744073709551615 bytes"},
    };
    for (const auto& one : cases) {
        CAPTURE(one.second);
        const std::string message = refusal([&] { SafetensorsFile{memory(one.first)}; });
        CHECK(message.find(one.second) != std::string::npos);
    }
}

TEST_CASE("sha256: the known answer, however it is cut") {
    const std::string text(1000, 'a');
    nola::files::Sha256 whole;
    whole.add(text);
    nola::files::Sha256 pieces;
    for (std::size_t i = 0; i < text.size(); i += 7) {
        pieces.add(std::string_view(text).substr(i, 7));
    }
    const std::string known = "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3";
    CHECK(whole.hex() == known);
    CHECK(pieces.hex() == known);
}
