#include "gguf.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "failure.h"
#include "gguf_cursor.h"
#include "gguf_types.h"
#include "printable.h"
#include "signature.h"

namespace nola::files {

namespace {

constexpr const char* kAlignmentKey = "general.alignment";
constexpr std::uint64_t kMaxAlignment = 1U << 20;
constexpr std::uint32_t kMaxDimensions = 4;  // GGML_MAX_DIMS
constexpr std::uint64_t kMaxName = 63;       // GGML_MAX_NAME, without its terminator
constexpr std::uint64_t kMaxSize = std::uint64_t{1} << 63;
constexpr std::uint64_t kMaxKey = 65535;
// What is kept of keys.
constexpr std::uint64_t kMaxKeyBytes = 1U << 22;
// Far more than any model has; a file that is nothing but tiny entries stays cheap.
constexpr std::uint64_t kMaxEntries = 1U << 16;
constexpr std::uint64_t kLeastPair = 8 + 4 + 1;        // key length, type, a one-byte value
constexpr std::uint64_t kLeastTensor = 8 + 4 + 4 + 8;  // name length, dimensions, type, offset

struct Counts {
    std::uint64_t tensors = 0;
    std::uint64_t pairs = 0;
};

bool is_supported(std::uint32_t version) {
    return version == 2 || version == 3;
}

std::uint32_t swapped(std::uint32_t number) {
    return number >> 24 | (number >> 8 & 0xFF00) | (number << 8 & 0xFF0000) | number << 24;
}

void check_count(const GgufCursor& cursor, const char* field, const std::string& what,
                 std::uint64_t count, std::uint64_t least) {
    const std::string said = std::to_string(count) + " " + what;
    if (count > cursor.left() / least) {
        throw cursor.refusal(said + " do not fit into " + std::to_string(cursor.left()) +
                                 " bytes; the file is truncated or its header lies",
                             field);
    }
    if (count > kMaxEntries) {
        throw cursor.refusal(said + " are more than " + std::to_string(kMaxEntries), field);
    }
}

// What a file begins with.
Counts read_preamble(GgufCursor& cursor) {
    if (cursor.left() < 24) {
        throw cursor.refusal("has " + std::to_string(cursor.left()) +
                             " bytes, too few for a GGUF file");
    }
    if (cursor.fixed(kGgufMagic.size()) != kGgufMagic) {
        throw cursor.refusal("does not begin with GGUF");
    }
    const auto version = cursor.number<std::uint32_t>();
    if (!is_supported(version)) {
        const char* reason =
            is_supported(swapped(version)) ? "it is big-endian" : "convert the model again";
        throw cursor.refusal(
            std::to_string(version) + " is not 2 or 3, the versions that are supported; " + reason,
            "version");
    }
    Counts counts;
    counts.tensors = cursor.number<std::uint64_t>();
    counts.pairs = cursor.number<std::uint64_t>();
    check_count(cursor, "kv_count", "key-value pairs", counts.pairs, kLeastPair);
    check_count(cursor, "tensor_count", "tensors", counts.tensors, kLeastTensor);
    return counts;
}

// The elements of a tensor, if they and their bytes can be numbered.
std::optional<std::uint64_t> elements(const std::vector<std::uint64_t>& sizes) {
    std::uint64_t product = 1;
    for (const std::uint64_t size : sizes) {
        if (size >= kMaxSize) {
            return std::nullopt;
        }
    }
    if (std::find(sizes.begin(), sizes.end(), 0) != sizes.end()) {
        return 0;
    }
    for (const std::uint64_t size : sizes) {
        if (__builtin_mul_overflow(product, size, &product)) {
            return std::nullopt;
        }
    }
    return product < kMaxSize ? std::optional(product) : std::nullopt;
}

std::optional<std::uint64_t> bytes_of(const GgufType& type, std::uint64_t count) {
    std::uint64_t bytes = 0;
    const bool is_too_large = __builtin_mul_overflow(count / type.block, type.bytes, &bytes);
    return is_too_large || bytes >= kMaxSize ? std::nullopt : std::optional(bytes);
}

}  // namespace

GgufFile::GgufFile(std::shared_ptr<const Input> input) : input_(std::move(input)) {
    refuse_lfs_pointer(beginning_of(*input_), *input_);
    GgufCursor cursor(*input_);
    const Counts counts = read_preamble(cursor);
    for (std::uint64_t i = 0; i < counts.pairs; ++i) {
        read_pair(cursor);
    }
    alignment_ = stated_alignment();
    for (std::uint64_t i = 0; i < counts.tensors; ++i) {
        tensors_.push_back(read_tensor(cursor));
    }
    data_start_ = padded(cursor.position(), alignment_);
    place();
}

void GgufFile::read_pair(GgufCursor& cursor) {
    const std::string key = cursor.text("a metadata key", kMaxKey);
    key_bytes_ += characters(key);
    if (key_bytes_ > kMaxKeyBytes) {
        throw cursor.refusal(
            "with it the keys take more than " + std::to_string(kMaxKeyBytes) + " bytes", key);
    }
    if (metadata_.count(key) != 0) {
        throw cursor.refusal("appears twice", key);
    }
    cursor.enter(key);
    metadata_.emplace(key, cursor.value());
    cursor.leave();
}

std::uint64_t GgufFile::stated_alignment() const {
    const GgufValue* stated = metadata(kAlignmentKey);
    if (stated == nullptr) {
        return kGgufAlignment;
    }
    std::uint64_t alignment = 0;
    if (const auto* number = std::get_if<std::uint64_t>(stated)) {
        alignment = *number;
    } else if (const auto* negative = std::get_if<std::int64_t>(stated)) {
        alignment = *negative > 0 ? static_cast<std::uint64_t>(*negative) : 0;
    }
    if (alignment == 0 || alignment > kMaxAlignment || (alignment & (alignment - 1)) != 0) {
        throw Failure(input_->name(), kAlignmentKey,
                      printable(plain(*stated)) + " is not a power of two up to " +
                          std::to_string(kMaxAlignment));
    }
    return alignment;
}

TensorInfo GgufFile::read_tensor(GgufCursor& cursor) {
    TensorInfo info;
    info.name = cursor.text("a tensor's name", kMaxName);
    if (!places_.emplace(info.name, places_.size()).second) {
        throw cursor.refusal("appears twice", info.name);
    }
    const auto dimensions = cursor.number<std::uint32_t>();
    if (dimensions > kMaxDimensions) {
        throw cursor.refusal("has " + std::to_string(dimensions) + " dimensions; at most " +
                                 std::to_string(kMaxDimensions) + " are allowed",
                             info.name);
    }
    for (std::uint32_t i = 0; i < dimensions; ++i) {
        info.shape.push_back(cursor.number<std::uint64_t>());
    }
    const auto count = elements(info.shape);
    const auto refuse_size = [&] {
        return cursor.refusal("dimensions [" + joined(info.shape, ", ") + "] are too large",
                              info.name);
    };
    if (!count) {
        throw refuse_size();
    }
    const auto code = cursor.number<std::uint32_t>();
    const GgufType* type = gguf_type(code);
    if (type == nullptr) {
        throw cursor.refusal("has the unknown type " + std::to_string(code), info.name);
    }
    info.type = type->name;
    const std::uint64_t row = info.shape.empty() ? 1 : info.shape[0];
    if (row % type->block != 0) {
        throw cursor.refusal("rows of " + std::to_string(row) +
                                 " elements are not whole blocks of " + info.type + ", " +
                                 std::to_string(type->block) + " elements each",
                             info.name);
    }
    const auto bytes = bytes_of(*type, *count);
    if (!bytes) {
        throw refuse_size();
    }
    std::reverse(info.shape.begin(), info.shape.end());
    info.start = cursor.number<std::uint64_t>();  // after what comes before it, says place()
    info.stop = *bytes;
    return info;
}

// Checks that tensors follow one another, padded, to the file's end; as ggml does.
void GgufFile::place() {
    std::uint64_t position = 0;
    std::uint64_t stop = data_start_;
    for (TensorInfo& info : tensors_) {
        if (info.start != position) {
            throw Failure(input_->name(), info.name,
                          "has offset " + std::to_string(info.start) +
                              ", but the tensors before it end at " + std::to_string(position));
        }
        info.start = data_start_ + position;
        info.stop += info.start;
        stop = info.stop;
        if (stop > input_->size()) {
            throw Failure(input_->name(), info.name,
                          "ends at byte " + std::to_string(stop) + ", but the file ends at " +
                              std::to_string(input_->size()) + "; it is truncated");
        }
        position = padded(stop - data_start_, alignment_);
    }
    if (input_->size() > padded(stop, alignment_)) {
        throw Failure(
            input_->name(), "",
            std::to_string(input_->size() - stop) + " bytes at the end belong to no tensor");
    }
}

const GgufValue* GgufFile::metadata(const std::string& key) const {
    const auto place = metadata_.find(key);
    return place == metadata_.end() ? nullptr : &place->second;
}

const TensorInfo* GgufFile::find(std::string_view name) const {
    const auto place = places_.find(name);
    return place == places_.end() ? nullptr : &tensors_[place->second];
}

std::string plain(const GgufValue& value) {
    struct Plain {
        std::string operator()(bool truth) const { return truth ? "True" : "False"; }
        std::string operator()(std::uint64_t number) const { return std::to_string(number); }
        std::string operator()(std::int64_t number) const { return std::to_string(number); }
        std::string operator()(double number) const { return shortest(number); }
        std::string operator()(const std::string& text) const { return text; }
        std::string operator()(const std::vector<GgufNumber>& numbers) const {
            std::string text;
            for (const GgufNumber& number : numbers) {
                text += (text.empty() ? "" : ", ") + std::visit(*this, number);
            }
            return "[" + text + "]";
        }
        std::string operator()(const LongValue& value) const {
            return "LongValue(count=" + std::to_string(value.count) + ")";
        }
    };
    return std::visit(Plain{}, value);
}

std::string shown(const GgufValue& value) {
    const std::string text = plain(value);
    if (!std::holds_alternative<std::string>(value)) {
        return printable(text);
    }
    const bool has_single = text.find('\'') != text.npos && text.find('"') == text.npos;
    const char quote = has_single ? '"' : '\'';
    std::string quoted(1, quote);
    for (const char c : text) {
        quoted += c == '\\' || c == quote ? "\\" : "";
        quoted += c;
    }
    return printable(quoted + quote);
}

std::uint64_t padded(std::uint64_t position, std::uint64_t alignment) {
    return (position + alignment - 1) / alignment * alignment;
}

std::string gguf_type_at(const std::string& path) {
    try {
        const GgufFile file(std::make_shared<FileInput>(path.c_str()));
        const GgufValue* type = file.metadata("general.type");
        return type == nullptr ? "model" : plain(*type);
    } catch (const Failure&) {
        return "";
    }
}

}  // namespace nola::files
