#include "tensor_parts.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "files/failure.h"
#include "files/json.h"
#include "files/printable.h"

namespace nola::adapters {

namespace {

using Failure = files::AdapterFailure;
using Parts = std::map<std::string, TensorPart>;

constexpr std::size_t kMaxDigits = 10;

Failure refusal(std::string_view file, const std::string& reason) {
    return {file, "tensors", reason + "; save the adapter again"};
}

// A decimal number without leading zeros.
std::optional<std::uint64_t> number(std::string_view digits) {
    const bool leading = digits.size() > 1 && digits[0] == '0';
    const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
    if (digits.empty() || digits.size() > kMaxDigits || leading ||
        !std::all_of(digits.begin(), digits.end(), is_digit)) {
        return std::nullopt;
    }
    return std::stoull(std::string(digits));
}

// NAME or NAME[START:STOP].
std::optional<TensorPart> parse_part(std::string_view text) {
    if (text.empty() || !files::is_printable(text)) {
        return std::nullopt;
    }
    if (text.back() != ']') {
        return TensorPart{std::string(text)};
    }
    const std::size_t bracket = text.rfind('[');
    const std::size_t colon = text.rfind(':');
    if (bracket == text.npos || bracket == 0 || colon == text.npos || colon < bracket) {
        return std::nullopt;
    }
    const auto begin = number(text.substr(bracket + 1, colon - bracket - 1));
    const auto end = number(text.substr(colon + 1, text.size() - colon - 2));
    if (!begin || !end || *begin >= *end) {
        return std::nullopt;
    }
    return TensorPart{std::string(text.substr(0, bracket)), *begin, *end};
}

bool overlap(const TensorPart& one, const TensorPart& other) {
    const bool whole = one.end == 0 || other.end == 0;
    return whole || std::max(one.begin, other.begin) < std::min(one.end, other.end);
}

void check_apart(const Parts& parts, std::string_view file) {
    std::vector<Parts::const_iterator> ordered;
    for (auto part = parts.begin(); part != parts.end(); ++part) {
        if (!part->second.tensor.empty()) {
            ordered.push_back(part);
        }
    }
    const auto key = [](Parts::const_iterator part) {
        return std::tie(part->second.tensor, part->second.begin, part->second.end);
    };
    std::stable_sort(ordered.begin(), ordered.end(),
                     [&](auto one, auto other) { return key(one) < key(other); });
    for (std::size_t i = 1; i < ordered.size(); ++i) {
        const auto one = ordered[i - 1];
        const auto other = ordered[i];
        if (one->second.tensor == other->second.tensor && overlap(one->second, other->second)) {
            throw refusal(file, "gives '" + files::printable(one->first) + "' and '" +
                                    files::printable(other->first) + "' the same part of '" +
                                    files::printable(other->second.tensor) + "'");
        }
    }
}

}  // namespace

Parts parse_parts(yyjson_val* field, std::string_view file) {
    if (field != nullptr && !yyjson_is_obj(field) && !yyjson_is_false(field)) {
        throw refusal(file, "is " + files::shown(field) + ", must be an object");
    }
    Parts parts;
    files::for_each_member(field, [&](std::string_view module, yyjson_val* value) {
        std::optional<TensorPart> part;
        if (yyjson_is_null(value)) {
            part.emplace();
        } else if (yyjson_is_str(value)) {
            part = parse_part(files::text_of(value));
        }
        if (!part || !files::is_printable(module)) {
            throw refusal(file, "gives '" + files::printable(module) + "' " + files::shown(value) +
                                    ", must give the name of a tensor or, where it holds several "
                                    "modules, of some of its outputs: \"NAME[0:64]\"");
        }
        parts.emplace(module, *part);
    });
    check_apart(parts, file);
    return parts;
}

}  // namespace nola::adapters
