#include "weights.h"

#include <unistd.h>

#include <algorithm>

#include "files/copying.h"
#include "files/renaming.h"
#include "matrix.h"

namespace nola::merging {

namespace {

std::string named(const std::vector<WeightedAdapter>& adapters) {
    std::string names;
    for (const WeightedAdapter& adapter : adapters) {
        names += (names.empty() ? "" : " + ") + adapter.path;
    }
    return names;
}

}  // namespace

void write_weights(const Plan& plan, std::size_t shard, int fd, int num_threads) {
    const files::SafetensorsFile& file = *plan.base().shards()[shard];
    const files::FileInput& input = plan.base().input(shard);
    std::vector<const files::TensorInfo*> changed;
    for (const files::TensorInfo& info : file.tensors()) {
        if (info.bytes() != 0 && !plan.segments(info.name).empty()) {
            changed.push_back(&info);
        }
    }
    std::sort(changed.begin(), changed.end(),
              [](const auto* one, const auto* other) { return one->start < other->start; });
    if (::ftruncate(fd, static_cast<off_t>(input.size())) != 0) {
        files::throw_errno();
    }
    MatrixWriter writer(fd, num_threads, named(plan.adapters()));
    std::uint64_t done = 0;
    for (const files::TensorInfo* info : changed) {
        files::copy_in_pieces(input, done, fd, done, info->start - done, num_threads);
        writer.write({&input, info}, plan.segments(info->name), info->start);
        done = info->stop;
    }
    files::copy_in_pieces(input, done, fd, done, input.size() - done, num_threads);
}

}  // namespace nola::merging
