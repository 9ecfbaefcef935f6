#include "safetensors.h"

#include <algorithm>
#include <utility>

#include "failure.h"
#include "json.h"
#include "printable.h"
#include "signature.h"

namespace nola::files {

namespace {

constexpr std::uint64_t kMaxHeaderBytes = 16U << 20;
constexpr std::size_t kMaxTensors = 100'000;
constexpr std::size_t kMaxName = 8192;
constexpr std::size_t kMaxMetadata = 1U << 20;
constexpr std::size_t kMaxDimensions = 64;
constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 63;
constexpr std::string_view kMetadata = "__metadata__";

// Bits of an element; 0 for a type that safetensors does not have.
std::uint64_t bits_of(std::string_view type) {
    static constexpr std::pair<std::string_view, std::uint64_t> kBits[] = {
        {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
        {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
        {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
        {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
        {"I64", 64},        {"U64", 64},
    };
    for (const auto& [name, bits] : kBits) {
        if (name == type) {
            return bits;
        }
    }
    return 0;
}

// Refuses what is no safetensors file by what it is.
void check_kind(std::string_view begin, const Input& input) {
    refuse_lfs_pointer(begin, input);
    if (begin.size() < 8) {
        throw Failure(
            input.name(), "",
            "has " + std::to_string(begin.size()) + " bytes, too few for a safetensors file");
    }
    if (begin.substr(0, kGgufMagic.size()) == kGgufMagic) {
        throw Failure(input.name(), "", "is a GGUF file, but a safetensors file is needed");
    }
    const bool has_header = begin.substr(8, 1) == "{";
    if (!has_header && (begin.substr(0, 4) == "PK\x03\x04" || begin[0] == '\x80')) {
        throw Failure(input.name(), "",
                      "is a file written by torch.save, which can run code and is never read; "
                      "convert it to safetensors where you trust it");
    }
}

std::uint64_t header_length(std::string_view begin, const Input& input) {
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) {
        length = (length << 8) | static_cast<unsigned char>(begin[static_cast<std::size_t>(i)]);
    }
    const std::string claim = "the header claims " + std::to_string(length) + " bytes, ";
    if (length > input.size() - 8) {
        throw Failure(input.name(), "header length",
                      claim + "the file has " + std::to_string(input.size()) +
                          "; it is truncated or not a safetensors file");
    }
    if (length > kMaxHeaderBytes) {
        throw Failure(input.name(), "header length",
                      claim + "more than the limit of " + std::to_string(kMaxHeaderBytes) +
                          "; a model's tensors need far less");
    }
    return length;
}

bool is_size(yyjson_val* value) {
    return yyjson_is_uint(value) && yyjson_get_uint(value) < kMaxSize;
}

std::vector<std::uint64_t> sizes_of(yyjson_val* list) {
    std::vector<std::uint64_t> sizes;
    for_each_item(list, [&](yyjson_val* value) { sizes.push_back(yyjson_get_uint(value)); });
    return sizes;
}

bool are_sizes(yyjson_val* list, std::size_t most) {
    bool all = yyjson_is_arr(list) && yyjson_arr_size(list) <= most;
    for_each_item(list, [&](yyjson_val* value) { all = all && is_size(value); });
    return all;
}

// Whether elements of so many bits fill so many bytes. The product may have thousands of digits.
bool fills(const std::vector<std::uint64_t>& shape, std::uint64_t bits, std::uint64_t bytes) {
    if (std::find(shape.begin(), shape.end(), 0U) != shape.end()) {
        return bytes == 0;
    }
    const std::uint64_t wanted = bytes <= kMaxSize / 8 ? bytes * 8 : 0;
    std::uint64_t product = bits;
    for (const std::uint64_t size : shape) {
        if (product > wanted / size) {
            return false;
        }
        product *= size;
    }
    return product == wanted;
}

TensorInfo entry(std::string_view name, yyjson_val* value, std::uint64_t data_start,
                 const Input& input) {
    const auto refuse = [&](const std::string& message) -> Failure {
        return {input.name(), name, message};
    };
    yyjson_val* type = yyjson_obj_get(value, "dtype");
    yyjson_val* shape = yyjson_obj_get(value, "shape");
    yyjson_val* offsets = yyjson_obj_get(value, "data_offsets");
    const bool complete = type != nullptr && shape != nullptr && offsets != nullptr;
    if (!complete || yyjson_obj_size(value) != 3) {
        throw refuse("an entry must have exactly dtype, shape and data_offsets");
    }
    const std::uint64_t bits = yyjson_is_str(type) ? bits_of(text_of(type)) : 0;
    if (bits == 0) {
        throw refuse("dtype " + shown(type) + " is unknown");
    }
    if (!are_sizes(shape, kMaxDimensions)) {
        throw refuse("shape " + shown(shape) + " is not a list of at most 64 sizes");
    }
    if (!are_sizes(offsets, 2) || yyjson_arr_size(offsets) != 2) {
        throw refuse("data_offsets " + shown(offsets) + " are not two offsets");
    }
    TensorInfo info{std::string(name), std::string(text_of(type)), sizes_of(shape), 0, 0};
    const std::vector<std::uint64_t> ends = sizes_of(offsets);
    if (ends[0] > ends[1]) {
        throw refuse("data_offsets " + shown(offsets) + " run backwards");
    }
    if (!fills(info.shape, bits, ends[1] - ends[0])) {
        throw refuse("shape " + shown(shape) + " of " + info.type + " does not take the " +
                     std::to_string(ends[1] - ends[0]) + " bytes that data_offsets give");
    }
    info.start = data_start + ends[0];
    info.stop = data_start + ends[1];
    return info;
}

std::map<std::string, std::string> metadata_of(yyjson_val* value, const Input& input) {
    std::map<std::string, std::string> metadata;
    bool valid = yyjson_is_obj(value);
    std::size_t bytes = 0;
    for_each_member(value, [&](std::string_view key, yyjson_val* text) {
        valid = valid && yyjson_is_str(text);
        if (valid) {
            metadata.emplace(key, text_of(text));
            bytes += key.size() + text_of(text).size();
        }
    });
    if (!valid) {
        throw Failure(input.name(), kMetadata, "must map strings to strings");
    }
    if (bytes > kMaxMetadata) {
        throw Failure(input.name(), kMetadata, "has more than 1 MB");
    }
    return metadata;
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::shared_ptr<const Input> input) : input_(std::move(input)) {
    const std::string begin = beginning_of(*input_);
    check_kind(begin, *input_);
    const auto length = static_cast<std::size_t>(header_length(begin, *input_));
    parse(input_->read_text(8, length), 8 + length);
    check_coverage(8 + length);
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
        places_.emplace(tensors_[i].name, i);
    }
}

void SafetensorsFile::parse(std::string_view header, std::uint64_t data_start) {
    if (header.substr(0, 1) != "{") {
        throw Failure(input_->name(), "", "the header does not begin with '{'");
    }
    const Json json(header, input_->name());
    if (yyjson_obj_size(json.root()) > kMaxTensors + 1) {
        throw Failure(input_->name(), "", "has more than 100001 members");
    }
    for_each_member(json.root(), [&](std::string_view name, yyjson_val* value) {
        if (name.size() > kMaxName) {
            throw Failure(input_->name(), name, "is a name of more than 8192 bytes");
        }
        if (name == kMetadata) {
            metadata_ = metadata_of(value, *input_);
        } else {
            tensors_.push_back(entry(name, value, data_start, *input_));
        }
    });
}

// Every byte behind the header belongs to exactly one tensor.
void SafetensorsFile::check_coverage(std::uint64_t data_start) const {
    std::vector<const TensorInfo*> ordered;
    for (const TensorInfo& tensor : tensors_) {
        ordered.push_back(&tensor);
    }
    std::sort(ordered.begin(), ordered.end(), [](const TensorInfo* a, const TensorInfo* b) {
        return std::pair(a->start, a->stop) < std::pair(b->start, b->stop);
    });
    std::uint64_t position = data_start;
    for (const TensorInfo* tensor : ordered) {
        if (tensor->start < position) {
            throw Failure(input_->name(), tensor->name, "overlaps another tensor");
        }
        if (tensor->start > position) {
            throw Failure(
                input_->name(), tensor->name,
                std::to_string(tensor->start - position) + " bytes before it belong to no tensor");
        }
        position = tensor->stop;
    }
    if (position > input_->size()) {
        throw Failure(input_->name(), "",
                      "tensors end at byte " + std::to_string(position) + ", the file at " +
                          std::to_string(input_->size()) + "; it is truncated");
    }
    if (position < input_->size()) {
        throw Failure(
            input_->name(), "",
            std::to_string(input_->size() - position) + " bytes at the end belong to no tensor");
    }
}

std::string joined(const std::vector<std::uint64_t>& sizes, std::string_view between) {
    std::string text;
    for (const std::uint64_t size : sizes) {
        text += (text.empty() ? std::string_view() : between);
        text += std::to_string(size);
    }
    return text;
}

std::optional<std::string_view> SafetensorsFile::metadata(const std::string& key) const {
    const auto place = metadata_.find(key);
    return place == metadata_.end() ? std::nullopt : std::optional<std::string_view>(place->second);
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
    const auto place = places_.find(name);
    return place == places_.end() ? nullptr : &tensors_[place->second];
}

std::string SafetensorsFile::read(const TensorInfo& tensor) const {
    return input_->read_text(tensor.start, static_cast<std::size_t>(tensor.bytes()));
}

}  // namespace nola::files
