#include "gguf_cursor.h"

#include <algorithm>
#include <iterator>

#include "printable.h"

namespace nola::files {

namespace {

constexpr std::uint64_t kWindow = 1U << 20;
// What is kept of strings and arrays of numbers, which otherwise are only walked over.
constexpr std::uint64_t kKeptBytes = 1U << 20;
constexpr std::uint64_t kKeptLength = 4096;
constexpr std::uint64_t kNumberBytes = 32;
// Far more than a vocabulary has, and still walked over in seconds.
constexpr std::uint64_t kMaxStrings = 1U << 22;

constexpr std::uint32_t kBool = 7;
constexpr std::uint32_t kString = 8;
constexpr std::uint32_t kArray = 9;
// Bytes of a value of each type, 0 for those of no fixed size.
constexpr std::uint8_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

bool is_fixed(std::uint32_t kind) {
    return kind < std::size(kSizes) && kSizes[kind] != 0;
}

// The decimal digits of a product that may be too large for a number.
std::string product(std::uint64_t count, std::uint64_t size) {
    std::string digits = std::to_string(count);
    std::uint64_t carried = 0;
    for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit) {
        carried += static_cast<std::uint64_t>(*digit - '0') * size;
        *digit = static_cast<char>('0' + carried % 10);
        carried /= 10;
    }
    return (carried == 0 ? "" : std::to_string(carried)) + digits;
}

}  // namespace

Failure GgufCursor::refusal(std::string_view message, std::string_view field) const {
    return {input_.name(), field.empty() ? std::string_view(key_) : field, message};
}

void GgufCursor::need(std::uint64_t count, std::uint64_t size, const std::string& what) const {
    if (count > left() / size) {
        throw refusal(what + " takes " + product(count, size) + " bytes, but only " +
                      std::to_string(left()) +
                      " are left; the file is truncated or its header lies");
    }
}

bool GgufCursor::keeps(std::uint64_t length, std::uint64_t bytes) {
    if (length > kKeptLength || kept_ + bytes > kKeptBytes) {
        return false;
    }
    kept_ += bytes;
    return true;
}

void GgufCursor::take(char* to, std::size_t count) {
    need(count, 1, "the header");
    if (position_ < window_start_ || position_ + count > window_start_ + window_.size()) {
        window_start_ = position_;
        window_ = input_.read_text(position_, static_cast<std::size_t>(std::min(kWindow, left())));
    }
    std::memcpy(to, window_.data() + (position_ - window_start_), count);
    position_ += count;
}

std::string GgufCursor::fixed(std::size_t count) {
    std::string bytes(count, '\0');
    take(bytes.data(), count);
    return bytes;
}

std::string GgufCursor::text(const char* what, std::uint64_t longest) {
    const auto length = number<std::uint64_t>();
    if (length == 0 || length > longest) {
        throw refusal(std::string(what) + " has " + std::to_string(length) + " bytes, not 1 to " +
                      std::to_string(longest));
    }
    std::string name = fixed(static_cast<std::size_t>(length));
    if (!is_utf8(name)) {
        throw refusal(std::string(what) + " is not UTF-8");
    }
    return name;
}

GgufNumber GgufCursor::scalar(std::uint32_t kind) {
    switch (kind) {
        case 0:
            return std::uint64_t{number<std::uint8_t>()};
        case 1:
            return std::int64_t{number<std::int8_t>()};
        case 2:
            return std::uint64_t{number<std::uint16_t>()};
        case 3:
            return std::int64_t{number<std::int16_t>()};
        case 4:
            return std::uint64_t{number<std::uint32_t>()};
        case 5:
            return std::int64_t{number<std::int32_t>()};
        case 6:
            return static_cast<double>(number<float>());
        case kBool:
            return std::uint64_t{number<std::uint8_t>()};
        case 10:
            return number<std::uint64_t>();
        case 11:
            return number<std::int64_t>();
        default:
            return number<double>();
    }
}

GgufValue GgufCursor::value() {
    const auto kind = number<std::uint32_t>();
    if (kind == kString) {
        return string();
    }
    if (kind == kArray) {
        return array();
    }
    if (!is_fixed(kind)) {
        throw refusal("has the unknown value type " + std::to_string(kind));
    }
    const GgufNumber found = scalar(kind);
    if (kind != kBool) {
        return std::visit([](auto plain) { return GgufValue(plain); }, found);
    }
    const std::uint64_t truth = std::get<std::uint64_t>(found);
    if (truth > 1) {
        throw refusal("is " + std::to_string(truth) + ", not a bool");
    }
    return truth == 1;
}

GgufValue GgufCursor::string() {
    const auto length = number<std::uint64_t>();
    need(length, 1, "a string");
    if (!keeps(length, length)) {
        position_ += length;
        return LongValue{length};
    }
    return with_replacements(fixed(static_cast<std::size_t>(length)));
}

GgufValue GgufCursor::array() {
    const auto kind = number<std::uint32_t>();
    const auto count = number<std::uint64_t>();
    if (kind == kString) {
        need(count, 8, "an array of " + std::to_string(count) + " strings");
        strings_ += count;
        if (strings_ > kMaxStrings) {
            throw refusal("with it there are more than " + std::to_string(kMaxStrings) +
                          " strings");
        }
        for (std::uint64_t i = 0; i < count; ++i) {
            const auto length = number<std::uint64_t>();
            need(length, 1, "a string");
            position_ += length;
        }
        return LongValue{count};
    }
    if (!is_fixed(kind)) {
        throw refusal("is an array of the unknown value type " + std::to_string(kind));
    }
    need(count, kSizes[kind], "an array of " + std::to_string(count) + " numbers");
    if (!keeps(count, kNumberBytes * count)) {
        position_ += count * kSizes[kind];
        return LongValue{count};
    }
    std::vector<GgufNumber> numbers;
    for (std::uint64_t i = 0; i < count; ++i) {
        numbers.push_back(scalar(kind));
    }
    return numbers;
}

}  // namespace nola::files
