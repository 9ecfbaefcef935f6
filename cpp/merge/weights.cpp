#include "weights.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "factors.h"
#include "files/copying.h"
#include "files/failure.h"
#include "files/output.h"
#include "files/pieces.h"
#include "files/printable.h"
#include "files/renaming.h"
#include "nola/merge.h"
#include "parallel.h"

namespace nola::merging {

namespace {

using files::StoredTensor;

constexpr std::uint64_t kFloat = sizeof(float);
// Large enough to make a thread's turn worthwhile, small enough to stay in the last-level cache.
constexpr std::uint64_t kBlock = 4U << 20;
// Of the right factor, for one strip.
constexpr std::uint64_t kStrip = 8U << 20;
// Strips begin at multiples of this, so that no stripe of the generator is cut.
constexpr std::uint64_t kAlignment = 64;
// What all threads together may hold of blocks, and of left factors.
constexpr std::uint64_t kAllBlocks = 16U << 20;
constexpr std::uint64_t kAllLeft = 8U << 20;
constexpr std::uint64_t kCopied = 8U << 20;

// Memory for windows, as much as threads work at once.
class Buffers {
public:
    using Buffer = std::vector<char>;

    std::unique_ptr<Buffer> take(std::size_t size) {
        std::unique_ptr<Buffer> buffer;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            if (!free_.empty()) {
                buffer = std::move(free_.back());
                free_.pop_back();
            }
        }
        buffer = buffer == nullptr ? std::make_unique<Buffer>() : std::move(buffer);
        buffer->resize(std::max(buffer->size(), size));
        return buffer;
    }

    void give_back(std::unique_ptr<Buffer> buffer) {
        const std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(std::move(buffer));
    }

private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<Buffer>> free_;
};

ElementType type_of(const files::TensorInfo& info) {
    return info.type == "F32"   ? ElementType::kFloat32
           : info.type == "F16" ? ElementType::kFloat16
                                : ElementType::kBFloat16;
}

std::string who(const Plan& plan) {
    std::string names;
    for (const WeightedAdapter& adapter : plan.adapters()) {
        names += (names.empty() ? "" : " + ") + adapter.path;
    }
    return names;
}

// One stored matrix that is merged into, strip by strip.
class MergedWeight {
public:
    MergedWeight(const Plan& plan, const StoredTensor& stored, int fd, int num_threads,
                 Buffers& buffers)
        : plan_(plan),
          stored_(stored),
          segments_(plan.segments(stored.info->name)),
          fd_(fd),
          num_threads_(num_threads),
          buffers_(buffers),
          type_(type_of(*stored.info)),
          rows_(stored.info->shape[0]),
          cols_(stored.info->shape[1]) {
        for (const Segment& segment : segments_) {
            rank_ += rank_of(segment);
        }
    }

    void write() const {
        const std::uint64_t width = strip_width();
        for (std::uint64_t col = 0; col < cols_; col += width) {
            write_strip({col, std::min(col + width, cols_)});
        }
    }

private:
    // A segment's columns within a strip, with its right factor there.
    struct Part {
        const Segment* segment = nullptr;
        Range rows;
        Range cols;
        std::vector<float> right;
        float scaling = 1.0F;
    };

    std::uint64_t strip_width() const {
        const std::uint64_t size = element_size(type_);
        const std::uint64_t most = std::min(kStrip / (kFloat * rank_), kBlock / size);
        return cols_ <= most ? cols_ : std::max(kAlignment, most / kAlignment * kAlignment);
    }

    std::uint64_t window_rows(const Range& cols) const {
        const auto threads =
            static_cast<std::uint64_t>(choose_threads(num_threads_, kAllBlocks / 4096));
        const std::uint64_t block = std::min(kBlock, std::max(kAllBlocks / threads, kBlock / 8));
        const std::uint64_t left = std::max<std::uint64_t>(kAllLeft / threads, 1U << 20);
        const std::uint64_t row_bytes = cols.size() * element_size(type_);
        return std::max<std::uint64_t>(1, std::min(block / row_bytes, left / (kFloat * rank_)));
    }

    std::vector<Part> parts_of(const Range& cols) const {
        std::vector<Part> parts;
        for (const Segment& segment : segments_) {
            const bool by_cols = !segment.is_whole && segment.terms[0].transposed;
            const Range lines{segment.begin, segment.end};
            Part part;
            part.segment = &segment;
            part.rows = segment.is_whole || by_cols ? Range{0, rows_} : lines;
            part.cols = by_cols ? common(lines, cols) : cols;
            if (part.cols.size() != 0) {
                part.right = right_factor(segment, part.cols, num_threads_);
                part.scaling = scaling_of(segment);
                parts.push_back(std::move(part));
            }
        }
        return parts;
    }

    void write_strip(const Range& cols) const {
        const std::vector<Part> parts = parts_of(cols);
        const std::uint64_t step = window_rows(cols);
        const auto count = static_cast<std::size_t>((rows_ + step - 1) / step);
        files::for_each_piece(count, num_threads_, [&](std::size_t piece) {
            const std::uint64_t begin = piece * step;
            write_window({begin, std::min(begin + step, rows_)}, cols, parts);
        });
    }

    void write_window(const Range& rows, const Range& cols, const std::vector<Part>& parts) const {
        const std::size_t row_bytes = cols.size() * element_size(type_);
        auto buffer = buffers_.take(rows.size() * row_bytes);
        each_run(rows, cols, [&](std::uint64_t offset, std::size_t at, std::size_t bytes) {
            stored_.file->input().read(stored_.info->start + offset, buffer->data() + at, bytes);
        });
        for (const Part& part : parts) {
            change(buffer->data(), rows, cols, part);
        }
        each_run(rows, cols, [&](std::uint64_t offset, std::size_t at, std::size_t bytes) {
            files::write_all(fd_, buffer->data() + at, bytes, stored_.info->start + offset);
        });
        buffers_.give_back(std::move(buffer));
    }

    // Calls each(offset in the tensor, offset in the window, bytes) for what lies together.
    template <class Each>
    void each_run(const Range& rows, const Range& cols, const Each& each) const {
        const std::uint64_t size = element_size(type_);
        const auto row_bytes = static_cast<std::size_t>(cols.size() * size);
        if (cols.size() == cols_) {
            each(rows.begin * cols_ * size, 0, rows.size() * row_bytes);
            return;
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            each(((rows.begin + row) * cols_ + cols.begin) * size, row * row_bytes, row_bytes);
        }
    }

    // Merges what a part changes of a window, in place.
    void change(char* window, const Range& rows, const Range& cols, const Part& part) const {
        const Range here = common(rows, part.rows);
        if (here.size() == 0) {
            return;
        }
        const std::vector<float> left = left_factor(*part.segment, here);
        const std::uint64_t first =
            (here.begin - rows.begin) * cols.size() + (part.cols.begin - cols.begin);
        Weight weight;
        weight.base = weight.out = window + first * element_size(type_);
        weight.type = type_;
        weight.shape = {here.size(), part.cols.size()};
        weight.base_stride = weight.out_stride = cols.size();
        const LowRank update{left.data(), part.right.data(), rank_of(*part.segment), part.scaling};
        if (!nola::merge(weight, update, 1)) {
            refuse_infinite(here);
        }
    }

    [[noreturn]] void refuse_infinite(const Range& rows) const {
        throw files::Failure(
            stored_.file->input().name(), stored_.info->name,
            "a merged weight in rows " + std::to_string(rows.begin) + ".." +
                std::to_string(rows.end - 1) +
                " is infinite or NaN: the base holds such a value there, or base and adapter "
                "together are too large for " +
                stored_.info->type + "; adapter " + who(plan_),
            "NotFiniteError");
    }

    const Plan& plan_;
    const StoredTensor stored_;
    const std::vector<Segment>& segments_;
    int fd_;
    int num_threads_;
    Buffers& buffers_;
    ElementType type_;
    std::uint64_t rows_;
    std::uint64_t cols_;
    std::size_t rank_ = 0;
};

void copy(const files::FileInput& source, const Range& bytes, int fd, int num_threads) {
    const auto count = static_cast<std::size_t>((bytes.end - bytes.begin + kCopied - 1) / kCopied);
    files::for_each_piece(count, num_threads, [&](std::size_t piece) {
        const std::uint64_t begin = bytes.begin + piece * kCopied;
        files::copy_range(source, begin, fd, begin, std::min(kCopied, bytes.end - begin));
    });
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
    Buffers buffers;
    std::uint64_t done = 0;
    for (const files::TensorInfo* info : changed) {
        copy(input, {done, info->start}, fd, num_threads);
        MergedWeight(plan, {&file, info}, fd, num_threads, buffers).write();
        done = info->stop;
    }
    copy(input, {done, input.size()}, fd, num_threads);
}

}  // namespace nola::merging
