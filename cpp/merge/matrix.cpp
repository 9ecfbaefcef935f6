#include "matrix.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "factors.h"
#include "files/failure.h"
#include "files/output.h"
#include "files/pieces.h"
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
// Strips begin at multiples of this, so that no stripe of the generator is cut …
constexpr std::uint64_t kAlignment = 64;
// … nor a block of a quantised type.
constexpr std::uint64_t kBlockAlignment = 256;
// What all threads together may hold of blocks, and of left factors.
constexpr std::uint64_t kAllBlocks = 16U << 20;
constexpr std::uint64_t kAllLeft = 8U << 20;
// Elements of a window that is dequantised and quantised again.
constexpr std::uint64_t kQuantized = 1U << 18;

// How a type stores numbers.
struct Format {
    std::string_view name;
    bool is_float;
    ElementType type;     // of floats
    BlockType blocks;     // of others
    std::uint64_t block;  // elements that are stored together
    std::uint64_t bytes;  // of these

    // Of elements that are whole blocks.
    std::uint64_t bytes_of(std::uint64_t elements) const { return elements / block * bytes; }
};

constexpr Format float_format(std::string_view name, ElementType type) {
    return {name, true, type, BlockType::kQ8_0, 1, element_size(type)};
}

constexpr Format block_format(std::string_view name, BlockType blocks) {
    return {name, false, ElementType::kFloat32, blocks, kBlockElements, block_bytes(blocks)};
}

constexpr Format kFormats[] = {
    float_format("F32", ElementType::kFloat32),   float_format("F16", ElementType::kFloat16),
    float_format("BF16", ElementType::kBFloat16), block_format("Q8_0", BlockType::kQ8_0),
    block_format("Q4_0", BlockType::kQ4_0),       block_format("Q4_1", BlockType::kQ4_1),
    block_format("Q5_0", BlockType::kQ5_0),       block_format("Q5_1", BlockType::kQ5_1),
};

const Format* format_of(std::string_view type) {
    const auto* found = std::find_if(std::begin(kFormats), std::end(kFormats),
                                     [&](const Format& format) { return format.name == type; });
    return found == std::end(kFormats) ? nullptr : found;
}

}  // namespace

// Memory for windows, as much as threads work at once.
class MatrixWriter::Buffers {
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

// One stored matrix that is merged into, strip by strip.
class MatrixWriter::Job {
public:
    Job(const MatrixWriter& writer, const StoredTensor& stored,
        const std::vector<Segment>& segments, std::uint64_t offset)
        : fd_(writer.fd_),
          adapters_(writer.adapters_),
          num_threads_(writer.num_threads_),
          buffers_(*writer.buffers_),
          stored_(stored),
          segments_(segments),
          offset_(offset),
          format_(*format_of(stored.info->type)),
          rows_(stored.info->shape[0]),
          cols_(stored.info->shape[1]) {
        for (const Segment& segment : segments_) {
            rank_ += rank_of(segment);
        }
    }

    ChangeSums write() {
        const std::uint64_t width = strip_width();
        for (std::uint64_t col = 0; col < cols_; col += width) {
            write_strip({col, std::min(col + width, cols_)});
        }
        ChangeSums all;
        for (const auto& [place, sums] : sums_) {
            all += sums;
        }
        return all;
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
        const std::uint64_t most =
            std::min(kStrip / (kFloat * rank_), kBlock * format_.block / format_.bytes);
        const std::uint64_t step = format_.is_float ? kAlignment : kBlockAlignment;
        return cols_ <= most ? cols_ : std::max(step, most / step * step);
    }

    std::uint64_t window_rows(const Range& cols) const {
        const auto threads =
            static_cast<std::uint64_t>(choose_threads(num_threads_, kAllBlocks / 4096));
        const std::uint64_t block = std::min(kBlock, std::max(kAllBlocks / threads, kBlock / 8));
        const std::uint64_t left = std::max<std::uint64_t>(kAllLeft / threads, 1U << 20);
        const std::uint64_t row_bytes = format_.bytes_of(cols.size());
        const std::uint64_t most =
            format_.is_float ? block : std::min(block, format_.bytes_of(kQuantized));
        return std::max<std::uint64_t>(1, std::min(most / row_bytes, left / (kFloat * rank_)));
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

    void write_strip(const Range& cols) {
        const std::vector<Part> parts = parts_of(cols);
        const std::uint64_t step = window_rows(cols);
        const auto count = static_cast<std::size_t>((rows_ + step - 1) / step);
        files::for_each_piece(count, num_threads_, [&](std::size_t piece) {
            const std::uint64_t begin = piece * step;
            write_window({begin, std::min(begin + step, rows_)}, cols, parts);
        });
    }

    void write_window(const Range& rows, const Range& cols, const std::vector<Part>& parts) {
        const auto bytes = static_cast<std::size_t>(rows.size() * format_.bytes_of(cols.size()));
        auto buffer = buffers_.take(bytes);
        each_run(rows, cols, [&](std::uint64_t place, std::size_t at, std::size_t count) {
            stored_.input->read(stored_.info->start + place, buffer->data() + at, count);
        });
        if (format_.is_float) {
            change(buffer->data(), format_.type, rows, cols, parts);
        } else {
            change_blocks(reinterpret_cast<std::uint8_t*>(buffer->data()), rows, cols, parts);
        }
        each_run(rows, cols, [&](std::uint64_t place, std::size_t at, std::size_t count) {
            files::write_all(fd_, buffer->data() + at, count, offset_ + place);
        });
        buffers_.give_back(std::move(buffer));
    }

    // Calls each(offset in the tensor, offset in the window, bytes) for what lies together.
    template <class Each>
    void each_run(const Range& rows, const Range& cols, const Each& each) const {
        const std::uint64_t whole = format_.bytes_of(cols_);
        const auto run = static_cast<std::size_t>(format_.bytes_of(cols.size()));
        if (cols.size() == cols_) {
            each(rows.begin * whole, 0, rows.size() * run);
            return;
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            each((rows.begin + row) * whole + format_.bytes_of(cols.begin), row * run, run);
        }
    }

    // Merges what parts change of a window, in place.
    void change(void* window, ElementType type, const Range& rows, const Range& cols,
                const std::vector<Part>& parts) const {
        for (const Part& part : parts) {
            const Range here = common(rows, part.rows);
            if (here.size() == 0) {
                continue;
            }
            const std::vector<float> left = left_factor(*part.segment, here);
            const std::uint64_t first =
                (here.begin - rows.begin) * cols.size() + (part.cols.begin - cols.begin);
            Weight weight;
            weight.base = weight.out = static_cast<char*>(window) + first * element_size(type);
            weight.type = type;
            weight.shape = {here.size(), part.cols.size()};
            weight.base_stride = weight.out_stride = cols.size();
            const LowRank update{left.data(), part.right.data(), rank_of(*part.segment),
                                 part.scaling};
            if (!nola::merge(weight, update, 1)) {
                refuse_infinite(format_.is_float ? here : rows);
            }
        }
    }

    // Dequantises a window of blocks, merges, and quantises the rows that change, whoever quantised
    // the others.
    void change_blocks(std::uint8_t* window, const Range& rows, const Range& cols,
                       const std::vector<Part>& parts) {
        const std::size_t width = cols.size();
        const std::size_t row_blocks = width / kBlockElements;
        const std::size_t row_bytes = row_blocks * block_bytes(format_.blocks);
        std::vector<float> base(rows.size() * width);
        dequantize(format_.blocks, window, rows.size() * row_blocks, base.data(), 1);
        std::vector<float> wanted = base;
        change(wanted.data(), ElementType::kFloat32, rows, cols, parts);
        for (std::size_t row = 0; row < rows.size(); ++row) {
            const float* before = base.data() + row * width;
            const float* after = wanted.data() + row * width;
            if (!std::equal(before, before + width, after)) {
                quantize(format_.blocks, after, row_blocks, window + row * row_bytes, 1);
            }
        }
        std::vector<float> got(base.size());
        dequantize(format_.blocks, window, rows.size() * row_blocks, got.data(), 1);
        const ChangeSums sums = change_sums(base.data(), wanted.data(), got.data(), base.size());
        if (!std::isfinite(sums.got)) {
            refuse_infinite(rows);
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        sums_.emplace(std::pair(rows.begin, cols.begin), sums);
    }

    [[noreturn]] void refuse_infinite(const Range& rows) const {
        throw files::Failure(
            stored_.input->name(), stored_.info->name,
            "a merged weight in rows " + std::to_string(rows.begin) + ".." +
                std::to_string(rows.end - 1) +
                " is infinite or NaN: the base holds such a value there, or base and adapter "
                "together are too large for " +
                stored_.info->type + (adapters_.empty() ? "" : "; adapter " + adapters_),
            "NotFiniteError");
    }

    const int fd_;
    const std::string& adapters_;
    const int num_threads_;
    Buffers& buffers_;
    const StoredTensor stored_;
    const std::vector<Segment>& segments_;
    const std::uint64_t offset_;
    const Format format_;
    const std::uint64_t rows_;
    const std::uint64_t cols_;
    std::size_t rank_ = 0;
    std::mutex mutex_;
    // What is left of the change, by the first row and column of each window.
    std::map<std::pair<std::uint64_t, std::uint64_t>, ChangeSums> sums_;
};

MatrixWriter::MatrixWriter(int fd, int num_threads, std::string adapters)
    : fd_(fd),
      num_threads_(num_threads),
      adapters_(std::move(adapters)),
      buffers_(std::make_unique<Buffers>()) {}

MatrixWriter::~MatrixWriter() = default;

ChangeSums MatrixWriter::write(const StoredTensor& stored, const std::vector<Segment>& segments,
                               std::uint64_t offset) {
    return Job(*this, stored, segments, offset).write();
}

bool is_mergeable(const std::string& type) {
    return format_of(type) != nullptr;
}

bool is_quantized(const std::string& type) {
    const Format* format = format_of(type);
    return format != nullptr && !format->is_float;
}

}  // namespace nola::merging
