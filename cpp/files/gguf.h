// GGUF files whose header has been checked completely.
//
// The layout (specification of the ggml project, versions 2 and 3, little-endian): magic, version,
// number of tensors, number of key-value pairs; the pairs; name, dimensions, type and offset of
// each tensor; padding to the alignment; the tensors in that order, each padded to the alignment.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "input.h"
#include "safetensors.h"

namespace nola::files {

inline constexpr std::uint64_t kGgufAlignment = 32;

// A value that is not kept: a long string, or an array of strings or of many numbers.
struct LongValue {
    std::uint64_t count = 0;

    bool operator==(const LongValue& other) const { return count == other.count; }
    bool operator!=(const LongValue& other) const { return count != other.count; }
};

using GgufNumber = std::variant<bool, std::uint64_t, std::int64_t, double>;
using GgufValue = std::variant<bool, std::uint64_t, std::int64_t, double, std::string,
                               std::vector<GgufNumber>, LongValue>;

class GgufCursor;

class GgufFile {
public:
    // Throws Failure if the header breaks a rule of the format, or a limit.
    explicit GgufFile(std::shared_ptr<const Input> input);

    const Input& input() const { return *input_; }
    // Of every tensor, in bytes.
    std::uint64_t alignment() const { return alignment_; }
    // Where the tensors begin.
    std::uint64_t data_start() const { return data_start_; }
    // Null if there is no such key.
    const GgufValue* metadata(const std::string& key) const;
    // In the file's order. A type is called as ggml calls it; shapes are row-major, which is
    // ggml's dimensions reversed.
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    // Null if there is no such tensor.
    const TensorInfo* find(std::string_view name) const;

private:
    void read_pair(GgufCursor& cursor);
    std::uint64_t stated_alignment() const;
    TensorInfo read_tensor(GgufCursor& cursor);
    void place();

    std::shared_ptr<const Input> input_;
    std::map<std::string, GgufValue> metadata_;
    std::uint64_t key_bytes_ = 0;
    std::uint64_t alignment_ = kGgufAlignment;
    std::uint64_t data_start_ = 0;
    std::vector<TensorInfo> tensors_;
    std::map<std::string, std::size_t, std::less<>> places_;
};

// A value as text, for errors: as Python writes it, or as it shows it, text in quotes.
std::string plain(const GgufValue& value);
std::string shown(const GgufValue& value);

// The next multiple of an alignment.
std::uint64_t padded(std::uint64_t position, std::uint64_t alignment);

// What a GGUF file says it is: "model" where it says nothing; empty if a path is no such file, or
// is broken.
std::string gguf_type_at(const std::string& path);

}  // namespace nola::files
