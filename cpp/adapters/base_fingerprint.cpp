#include "base_fingerprint.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "files/digest.h"

namespace nola::adapters {

namespace {

constexpr std::uint64_t kWindows = 64;
constexpr std::uint64_t kWindowBytes = 64;

void add_sample(const files::StoredTensor& weight, files::Blake2b128& digest) {
    const files::Input& input = *weight.input;
    const std::uint64_t bytes = weight.info->bytes();
    if (bytes <= kWindows * kWindowBytes) {
        digest.add(input.read_text(weight.info->start, static_cast<std::size_t>(bytes)));
        return;
    }
    const std::uint64_t last = bytes - kWindowBytes;
    for (std::uint64_t i = 0; i < kWindows; ++i) {
        const std::uint64_t begin = i * last / (kWindows - 1);
        digest.add(input.read_text(weight.info->start + begin, kWindowBytes));
    }
}

}  // namespace

std::string base_fingerprint(const std::vector<std::string>& modules,
                             const std::vector<files::StoredTensor>& weights) {
    std::vector<std::size_t> order(modules.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return modules[a] < modules[b]; });
    files::Blake2b128 digest;
    for (const std::size_t i : order) {
        const files::TensorInfo& info = *weights[i].info;
        digest.add(modules[i] + " " + info.type + " " + files::joined(info.shape, "x") + "\n");
        add_sample(weights[i], digest);
    }
    return digest.hex();
}

}  // namespace nola::adapters
