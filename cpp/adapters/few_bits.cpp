#include "few_bits.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "nola/merge.h"

namespace nola::adapters {

namespace {

constexpr float kSmallestScale = 0x1p-126F;

std::uint32_t word_of(float value) {
    std::uint32_t word = 0;
    std::memcpy(&word, &value, sizeof word);
    return word;
}

// Zero, or a normal number of 16 significant bits. Zero by its bits: where subnormal numbers are
// flushed, others compare like it.
void check_scale(float scale) {
    const bool is_scale =
        scale >= kSmallestScale && std::isfinite(scale) && (word_of(scale) & 0xFF) == 0;
    if (!is_scale && word_of(scale) != 0) {
        throw std::invalid_argument("has a scale that no quantised coefficients have");
    }
}

// The bits of a stream, lowest first.
int bits_at(std::string_view packed, std::size_t place, int bits) {
    int value = 0;
    for (int i = 0; i < bits; ++i, ++place) {
        value |= ((static_cast<unsigned char>(packed[place / 8]) >> (place % 8)) & 1) << i;
    }
    return value;
}

void check_padding(std::string_view packed, std::size_t used) {
    if (used % 8 != 0 && static_cast<unsigned char>(packed.back()) >> (used % 8) != 0) {
        throw std::invalid_argument("has bits set after the last coefficient");
    }
}

float round_to_16_bits(float value) {
    std::uint32_t word = word_of(value);
    word = (word + 0x7F + ((word >> 8) & 1)) & 0xFFFFFF00;
    std::memcpy(&value, &word, sizeof value);
    return value;
}

// Whether quantising values again would give them: as many bits are enough, and needed.
bool fits(const float* values, std::size_t count, int bits) {
    float most = 0;
    for (std::size_t i = 0; i < count; ++i) {
        most = std::max(most, std::fabs(values[i]));
    }
    const auto largest = static_cast<float>((1 << (bits - 1)) - 1);
    const float whole = round_to_16_bits(most / largest);
    const float scale = whole >= kSmallestScale ? whole : 0;
    for (std::size_t i = 0; i < count; ++i) {
        const float steps = std::nearbyint(values[i] / (scale == 0 ? 1 : scale));
        if (std::clamp(steps, -largest, largest) * scale != values[i]) {
            return false;
        }
    }
    return true;
}

}  // namespace

std::vector<float> unpack(std::string_view packed, std::size_t count, int bits, float scale,
                          const float* first) {
    check_padding(packed, count * static_cast<std::size_t>(bits));
    std::vector<float> values(count);
    const int middle = 1 << (bits - 1);
    for (std::size_t i = 0; i < count; ++i) {
        const int q = bits_at(packed, i * static_cast<std::size_t>(bits), bits) - middle;
        if (q == -middle) {
            throw std::invalid_argument("holds the one integer that no coefficient has");
        }
        values[i] = static_cast<float>(q);
    }
    if (first != nullptr && values[0] != 0) {
        throw std::invalid_argument("holds a first coefficient beside the exact one");
    }
    check_scale(scale);
    nola::scale(values.data(), count, static_cast<double>(scale));
    const std::size_t apart = first != nullptr ? 1 : 0;
    if (!fits(values.data() + apart, count - apart, bits)) {
        throw std::invalid_argument("holds coefficients that do not fit in so many bits");
    }
    if (first != nullptr) {
        values[0] = *first;
    }
    for (const float value : values) {
        if (!std::isfinite(value)) {
            throw std::invalid_argument("holds a coefficient that is not finite");
        }
    }
    return values;
}

}  // namespace nola::adapters
