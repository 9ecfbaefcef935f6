#include "arguments.h"

#include <cstring>

namespace nola::c {

namespace {

// Of a fixed size: to note that there is no memory takes none.
thread_local char message[1024] = "";

bool continues_character(char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) == 0x80;
}

}  // namespace

const char* last_error() noexcept {
    return message;
}

nola_status failed(nola_status status, std::string_view text) noexcept {
    std::size_t length = std::min(text.size(), sizeof message - 1);
    while (length < text.size() && length > 0 && continues_character(text[length])) {
        --length;
    }
    std::memcpy(message, text.data(), length);
    message[length] = '\0';
    return status;
}

void refuse(std::string_view name, std::string_view reason) {
    throw std::invalid_argument(std::string(name) + ": " + std::string(reason));
}

nola::Factor factor_of(nola_factor factor) {
    if (factor != NOLA_FACTOR_A && factor != NOLA_FACTOR_B) {
        refuse("factor", std::to_string(factor) + " is neither 'A' nor 'B'");
    }
    return static_cast<nola::Factor>(factor);
}

std::size_t size_of(const char* name, std::uint64_t value) {
    if (value > std::numeric_limits<std::size_t>::max()) {
        refuse(name, std::to_string(value) + " is more than can be in memory");
    }
    return static_cast<std::size_t>(value);
}

void check_extent(const char* name, std::uint64_t rows, std::uint64_t cols, std::size_t bytes) {
    constexpr auto kMost = static_cast<std::uint64_t>(std::numeric_limits<std::ptrdiff_t>::max());
    if (cols != 0 && rows > kMost / bytes / cols) {
        refuse(name, std::to_string(rows) + " x " + std::to_string(cols) + " elements of " +
                         std::to_string(bytes) + " bytes are more than can be in memory");
    }
}

nola::Weight weight_of(const nola_weight* given_weight) {
    const nola_weight& weight = given("weight", given_weight);
    nola::Weight made;
    made.base = weight.base;
    made.out = weight.out;
    made.type = chosen<nola::ElementType>("type", weight.type, NOLA_BFLOAT16);
    made.shape = {size_of("rows", weight.rows), size_of("cols", weight.cols)};
    made.base_stride = size_of("base_stride", weight.base_stride);
    made.out_stride = size_of("out_stride", weight.out_stride);
    const std::size_t bytes = nola::element_size(made.type);
    check_extent("weight", made.shape.rows, std::max(made.base_stride, made.shape.cols), bytes);
    check_extent("weight", made.shape.rows, std::max(made.out_stride, made.shape.cols), bytes);
    return made;
}

}  // namespace nola::c
