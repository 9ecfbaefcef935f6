#include "survival.h"

#include <algorithm>
#include <cmath>

namespace nola::gguf {

std::optional<double> part_of(const ChangeSums& sums) {
    return sums.wanted == 0 ? std::nullopt : std::optional(sums.common / sums.wanted);
}

std::optional<double> noise_of(const ChangeSums& sums) {
    const std::optional<double> part = part_of(sums);
    return part ? std::optional(std::sqrt(std::max(0.0, sums.got / sums.wanted - *part * *part)))
                : std::nullopt;
}

ChangeSums added_up(const Survival& survival) {
    ChangeSums all;
    for (const auto& [tensor, sums] : survival) {
        all += sums;
    }
    return all;
}

}  // namespace nola::gguf
