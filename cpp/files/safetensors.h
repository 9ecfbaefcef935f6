// safetensors files whose header has been checked completely.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "input.h"

namespace nola::files {

struct TensorInfo {
    std::string name;
    std::string type;  // as safetensors calls it: "F32"
    std::vector<std::uint64_t> shape;
    std::uint64_t start = 0;  // in the file
    std::uint64_t stop = 0;

    std::uint64_t bytes() const { return stop - start; }
};

// Sizes of a shape as text: "2x3" with "x" between.
std::string joined(const std::vector<std::uint64_t>& sizes, std::string_view between);

// A tensor, and what it is read from.
struct StoredTensor {
    const Input* input = nullptr;
    const TensorInfo* info = nullptr;
};

class SafetensorsFile {
public:
    // Throws Failure if the header breaks a rule of the format, or a limit
    // (docs/adapter-format.md, *Limits*).
    explicit SafetensorsFile(std::shared_ptr<const Input> input);
    SafetensorsFile(const SafetensorsFile&) = delete;  // names are looked up by views of its own
    SafetensorsFile& operator=(const SafetensorsFile&) = delete;

    const Input& input() const { return *input_; }
    // Of `__metadata__`, which may not be there.
    std::optional<std::string_view> metadata(const std::string& key) const;
    // In the header's order.
    const std::vector<TensorInfo>& tensors() const { return tensors_; }
    // Null if there is no such tensor.
    const TensorInfo* find(std::string_view name) const;
    // All bytes of a tensor.
    std::string read(const TensorInfo& tensor) const;

private:
    void parse(std::string_view header, std::uint64_t data_start);
    void check_coverage(std::uint64_t data_start) const;

    std::shared_ptr<const Input> input_;
    std::map<std::string, std::string> metadata_;
    std::vector<TensorInfo> tensors_;
    std::map<std::string_view, std::size_t> places_;
};

}  // namespace nola::files
