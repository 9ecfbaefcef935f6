#include "printable.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <vector>

namespace nola::files {

namespace {

constexpr char32_t kInvalid = 0xFFFFFFFF;

struct Range {
    char32_t first;
    char32_t last;
};

// Unicode's categories Cc, Cf, Co, Cs, Zl, Zp and Zs, the space apart; in order. The last two hold
// what is not assigned as well.
constexpr Range kHidden[] = {
    {0x0000, 0x001F},    {0x007F, 0x00A0},   {0x00AD, 0x00AD},   {0x0600, 0x0605},
    {0x061C, 0x061C},    {0x06DD, 0x06DD},   {0x070F, 0x070F},   {0x0890, 0x0891},
    {0x08E2, 0x08E2},    {0x1680, 0x1680},   {0x180E, 0x180E},   {0x2000, 0x200F},
    {0x2028, 0x202F},    {0x205F, 0x206F},   {0x3000, 0x3000},   {0xD800, 0xF8FF},
    {0xFEFF, 0xFEFF},    {0xFFF0, 0xFFFB},   {0x110BD, 0x110BD}, {0x110CD, 0x110CD},
    {0x13430, 0x1343F},  {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE00FF},
    {0xE01F0, 0x10FFFF},
};

struct Character {
    char32_t value;
    std::size_t bytes;
};

// How many bytes a character has, by its first one; 0 if none begins so.
std::size_t length_by_first(unsigned char first) {
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) {
        return 0;
    }
    return first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

// The character that text, which is not empty, begins with; kInvalid and one byte if it is none.
Character first_character(std::string_view text) {
    const auto first = static_cast<unsigned char>(text[0]);
    const std::size_t bytes = length_by_first(first);
    if (bytes == 1) {
        return {first, 1};
    }
    if (bytes == 0 || bytes > text.size()) {
        return {kInvalid, 1};
    }
    char32_t value = first & (0x7FU >> bytes);
    for (std::size_t i = 1; i < bytes; ++i) {
        const auto next = static_cast<unsigned char>(text[i]);
        if ((next & 0xC0) != 0x80) {
            return {kInvalid, 1};
        }
        value = (value << 6) | (next & 0x3F);
    }
    constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    return value < kLeast[bytes] || value > 0x10FFFF ? Character{kInvalid, 1}
                                                     : Character{value, bytes};
}

bool is_surrogate(char32_t value) {
    return value >= 0xD800 && value < 0xE000;
}

bool shows(char32_t value) {
    const Range* range = std::lower_bound(std::begin(kHidden), std::end(kHidden), value,
                                          [](Range r, char32_t v) { return r.last < v; });
    return value != kInvalid && (range == std::end(kHidden) || value < range->first);
}

// As Python writes it.
std::string escaped(char32_t value, unsigned char byte) {
    constexpr std::string_view kNamed = "\t\n\r";
    const auto number = static_cast<std::uint32_t>(value == kInvalid ? byte : value);
    if (const auto place = kNamed.find(static_cast<char>(byte)); place != kNamed.npos) {
        return std::string("\\") + "tnr"[place];
    }
    char text[16];
    const char* form = number < 0x100 ? "\\x%02x" : number < 0x10000 ? "\\u%04x" : "\\U%08x";
    std::snprintf(text, sizeof text, form, number);
    return text;
}

template <class Number>
std::string shortest_of(Number value) {
    if (!std::isfinite(value)) {
        return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
    }
    char text[64];
    const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::scientific);
    std::string digits(text, end.ptr);
    const std::size_t e = digits.find('e');
    const long exponent = std::strtol(digits.c_str() + e + 1, nullptr, 10);
    if (value != 0 && (exponent < -4 || exponent >= 16)) {
        return digits;
    }
    const std::string sign = digits[0] == '-' ? "-" : "";
    digits = digits.substr(sign.size(), e - sign.size());
    digits.erase(std::remove(digits.begin(), digits.end(), '.'), digits.end());
    if (exponent < 0) {
        return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    }
    const auto whole = static_cast<std::size_t>(exponent) + 1;
    digits.resize(std::max(digits.size(), whole + 1), '0');
    return sign + digits.insert(whole, ".");
}

}  // namespace

std::string shortest(double value) {
    return shortest_of(value);
}

std::string shortest(float value) {
    return shortest_of(value);
}

bool is_printable(std::string_view text) {
    while (!text.empty()) {
        const Character next = first_character(text);
        if (!shows(next.value)) {
            return false;
        }
        text.remove_prefix(next.bytes);
    }
    return true;
}

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const Character next = first_character(text);
        if (next.value == kInvalid || is_surrogate(next.value)) {
            return false;
        }
        text.remove_prefix(next.bytes);
    }
    return true;
}

std::string with_replacements(std::string_view text) {
    std::string result;
    while (!text.empty()) {
        const Character next = first_character(text);
        const bool is_none = next.value == kInvalid || is_surrogate(next.value);
        result += is_none ? "\xef\xbf\xbd" : std::string(text.substr(0, next.bytes));
        text.remove_prefix(is_none ? 1 : next.bytes);
    }
    return result;
}

std::size_t characters(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
        return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
    }));
}

std::string printable(std::string_view text, std::size_t limit) {
    std::string result;
    std::vector<std::size_t> ends;  // of each character of the result
    while (!text.empty() && ends.size() <= limit) {
        const Character next = first_character(text);
        if (shows(next.value)) {
            result += text.substr(0, next.bytes);
            ends.push_back(result.size());
        } else {
            for (const char c : escaped(next.value, static_cast<unsigned char>(text[0]))) {
                result += c;
                ends.push_back(result.size());
            }
        }
        text.remove_prefix(next.bytes);
    }
    if (ends.size() > limit) {
        result.resize(ends[limit - 2]);
        result += "…";
    }
    return result;
}

}  // namespace nola::files
