#include "lora_alpha.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <tuple>

#include "files/printable.h"

namespace nola::exporting {

float alpha_of(double scaling, std::size_t r) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    const auto wanted = static_cast<float>(scaling);
    const auto rank = static_cast<float>(r);
    const auto product = static_cast<float>(scaling * static_cast<double>(r));
    const auto badness = [&](float alpha) {
        const float quotient = alpha / rank;
        return std::tuple(quotient != wanted, std::fabs(quotient - wanted),
                          files::shortest(alpha).size());
    };
    const float neighbours[] = {product, std::nextafter(product, -kInfinity),
                                std::nextafter(product, kInfinity)};
    return *std::min_element(std::begin(neighbours), std::end(neighbours),
                             [&](float one, float other) { return badness(one) < badness(other); });
}

}  // namespace nola::exporting
