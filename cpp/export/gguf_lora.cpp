#include "gguf_lora.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "files/failure.h"
#include "files/output.h"
#include "files/signature.h"
#include "files/stop.h"
#include "gguf/targets.h"
#include "lora_alpha.h"
#include "merge/factors.h"
#include "merge/output_plan.h"
#include "nola/merge.h"

namespace nola::exporting {

namespace {

using adapters::WeightedAdapter;
using merging::Range;
using merging::Term;
using Values = std::vector<float>;

// Elements that are made at once.
constexpr std::uint64_t kAtOnce = 1U << 20;
constexpr std::uint32_t kVersion = 3;
constexpr std::uint32_t kFloat = 6;  // types of metadata values
constexpr std::uint32_t kString = 8;
constexpr std::uint32_t kF32 = 0;  // types of tensors
constexpr std::uint32_t kF16 = 1;

// All that changes one tensor of the base.
struct Pair {
    std::string tensor;
    std::vector<Term> terms;

    std::size_t rank() const {
        std::size_t rank = 0;
        for (const Term& term : terms) {
            rank += term.rank();
        }
        return rank;
    }
};

// A tensor of the output, made in windows.
struct LoraTensor {
    std::string name;
    std::uint64_t rows;
    std::uint64_t cols;
    std::function<Values(const Range& rows, const Range& cols)> make;
};

// In the order in which adapters have their modules.
std::vector<Pair> pairs_of(const files::GgufFile& base, const gguf::Model& model,
                           const std::vector<WeightedAdapter>& adapters) {
    std::vector<Pair> pairs;
    std::map<std::string, std::size_t> places;
    for (const WeightedAdapter& adapter : adapters) {
        const auto targets = gguf::targets_of({adapter.adapter, adapter.path}, base, model);
        for (std::size_t i = 0; i < targets.size(); ++i) {
            const std::string& tensor = targets[i].tensor->name;
            const auto [place, is_new] = places.emplace(tensor, pairs.size());
            if (is_new) {
                pairs.push_back({tensor, {}});
            }
            pairs[place->second].terms.push_back(
                gguf::term_of(adapter, adapter.adapter.modules[i], targets[i]));
        }
    }
    return pairs;
}

// One alpha for the file, and what it cannot say: a factor on each B, or nothing.
//
// One adapter has one scaling s and one rank r: alpha = s r, and B stays exact. Several have ranks
// R that add up differently from tensor to tensor: alpha is the largest, and each B is multiplied
// by s R / alpha.
struct Scale {
    float alpha = 0;
    bool is_exact = false;
    double largest = 0;

    explicit Scale(const std::vector<Pair>& pairs) {
        using Limits = std::numeric_limits<float>;
        std::set<double> scalings;
        std::set<std::size_t> ranks;
        bool are_single = true;
        for (const Pair& pair : pairs) {
            ranks.insert(pair.rank());
            are_single = are_single && pair.terms.size() == 1;
            for (const Term& term : pair.terms) {
                scalings.insert(term.scaling());
            }
        }
        largest = static_cast<double>(*ranks.rbegin());
        are_single = are_single && ranks.size() == 1 && scalings.size() == 1;
        const double scaling = are_single ? *scalings.begin() : 0;
        // Within float's normal numbers: what is smaller loses digits, and at last is a factor
        // of 1.
        is_exact = std::fabs(scaling) >= static_cast<double>(Limits::min()) &&
                   std::fabs(scaling) * largest <= static_cast<double>(Limits::max());
        alpha = is_exact ? alpha_of(scaling, *ranks.rbegin()) : static_cast<float>(largest);
    }
};

// A of all adapters, one below the other.
Values joined_a(const Pair& pair, const Range& rows, const Range& cols, int num_threads) {
    if (pair.terms.size() == 1) {
        return merging::window_of_a(pair.terms[0], rows, cols, num_threads);
    }
    Values values;
    std::uint64_t first = 0;
    for (const Term& term : pair.terms) {
        const Range own = merging::common(rows, {first, first + term.rank()});
        if (own.size() != 0) {
            const Values part =
                merging::window_of_a(term, {own.begin - first, own.end - first}, cols, num_threads);
            values.insert(values.end(), part.begin(), part.end());
        }
        first += term.rank();
    }
    return values;
}

// B of all adapters, side by side, each with its scaling and the file's factor unless alpha says
// both.
Values joined_b(const Pair& pair, const Scale& scale, const Range& rows, int num_threads) {
    const std::size_t rank = pair.rank();
    Values values(rows.size() * rank);
    std::size_t before = 0;
    for (const Term& term : pair.terms) {
        const std::size_t own_rank = term.rank();
        Values own = merging::rows_of_b(term, rows, num_threads);
        if (!scale.is_exact) {
            nola::scale(own.data(), own.size(),
                        term.scaling() * (static_cast<double>(rank) / scale.largest));
        }
        if (pair.terms.size() == 1) {
            return own;
        }
        for (std::size_t row = 0; row < rows.size(); ++row) {
            std::copy_n(own.data() + row * own_rank, own_rank, values.data() + row * rank + before);
        }
        before += own_rank;
    }
    return values;
}

std::vector<LoraTensor> tensors_of(const std::vector<Pair>& pairs, const Scale& scale,
                                   int num_threads) {
    std::vector<LoraTensor> tensors;
    for (const Pair& pair : pairs) {
        const Term& first = pair.terms[0];
        tensors.push_back({pair.tensor + ".lora_a", pair.rank(), first.inputs,
                           [&pair, num_threads](const Range& rows, const Range& cols) {
                               return joined_a(pair, rows, cols, num_threads);
                           }});
        tensors.push_back({pair.tensor + ".lora_b", first.outputs, pair.rank(),
                           [&pair, &scale, num_threads](const Range& rows, const Range&) {
                               return joined_b(pair, scale, rows, num_threads);
                           }});
    }
    return tensors;
}

template <class Number>
void append(std::string& bytes, Number number) {
    bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

void append_text(std::string& bytes, std::string_view text) {
    append(bytes, static_cast<std::uint64_t>(text.size()));
    bytes += text;
}

void append_pair(std::string& bytes, std::string_view key, std::string_view value) {
    append_text(bytes, key);
    append(bytes, kString);
    append_text(bytes, value);
}

// The whole file, once all is known of it but the numbers.
class LoraFile {
public:
    LoraFile(const std::string& architecture, float alpha, const std::vector<LoraTensor>& tensors,
             bool is_half)
        : tensors_(tensors), is_half_(is_half) {
        header_ = files::kGgufMagic;
        append(header_, kVersion);
        append(header_, static_cast<std::uint64_t>(tensors.size()));
        append(header_, std::uint64_t{4});
        append_pair(header_, "general.architecture", architecture);
        append_pair(header_, "general.type", "adapter");
        append_pair(header_, "adapter.type", "lora");
        append_text(header_, "adapter.lora.alpha");
        append(header_, kFloat);
        append(header_, alpha);
        std::uint64_t offset = 0;
        for (const LoraTensor& tensor : tensors) {
            append_text(header_, tensor.name);
            append(header_, std::uint32_t{2});
            append(header_, tensor.cols);
            append(header_, tensor.rows);
            append(header_, is_half ? kF16 : kF32);
            append(header_, offset);
            offset += files::padded(bytes_of(tensor), files::kGgufAlignment);
        }
        const std::uint64_t end = files::padded(header_.size(), files::kGgufAlignment);
        header_.resize(static_cast<std::size_t>(end), '\0');
        size_ = header_.size() + offset;
    }

    std::uint64_t size() const { return size_; }

    void write(int fd) const {
        files::write_all(fd, header_.data(), header_.size(), 0);
        std::uint64_t at = header_.size();
        for (const LoraTensor& tensor : tensors_) {
            write_tensor(fd, tensor, at);
            at += files::padded(bytes_of(tensor), files::kGgufAlignment);
        }
        // The padding behind tensors is what nobody has written.
        if (::ftruncate(fd, static_cast<off_t>(size_)) != 0) {
            throw std::system_error(errno, std::generic_category());
        }
    }

private:
    std::uint64_t element_bytes() const { return is_half_ ? 2 : 4; }
    std::uint64_t bytes_of(const LoraTensor& tensor) const {
        return tensor.rows * tensor.cols * element_bytes();
    }

    // In windows of whole rows, or of parts of one.
    void write_tensor(int fd, const LoraTensor& tensor, std::uint64_t at) const {
        const std::uint64_t rows = std::max<std::uint64_t>(1, kAtOnce / tensor.cols);
        for (std::uint64_t row = 0; row < tensor.rows; row += rows) {
            for (std::uint64_t col = 0; col < tensor.cols; col += kAtOnce) {
                files::check_stopped();
                const Values values = tensor.make({row, std::min(row + rows, tensor.rows)},
                                                  {col, std::min(col + kAtOnce, tensor.cols)});
                write_values(fd, values, tensor.name,
                             at + (row * tensor.cols + col) * element_bytes());
            }
        }
    }

    void write_values(int fd, const Values& values, const std::string& name,
                      std::uint64_t offset) const {
        if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
            refuse(name, "F32");
        }
        if (is_half_) {
            const std::vector<std::uint16_t> halves = halves_of(values, name);
            files::write_all(fd, halves.data(), halves.size() * 2, offset);
        } else {
            files::write_all(fd, values.data(), values.size() * 4, offset);
        }
    }

    [[noreturn]] static void refuse(const std::string& name, const std::string& type) {
        throw files::Failure("", name, "is not finite in " + type, "NotFiniteError");
    }

    // As a merge into zeros rounds them, but for the sign of a zero.
    static std::vector<std::uint16_t> halves_of(const Values& values, const std::string& name) {
        std::vector<std::uint16_t> halves(values.size());
        const float one = 1.0F;
        const LowRank update{&one, values.data(), 1, 1.0F};
        if (!nola::merge(halves.data(), ElementType::kFloat16, 1, values.size(), update, 1)) {
            refuse(name, "F16");
        }
        for (std::size_t i = 0; i < values.size(); ++i) {
            if (std::signbit(values[i])) {
                halves[i] |= 0x8000U;
            }
        }
        return halves;
    }

    const std::vector<LoraTensor>& tensors_;
    bool is_half_;
    std::string header_;
    std::uint64_t size_ = 0;
};

}  // namespace

std::uint64_t export_gguf_lora(const files::GgufFile& base,
                               const std::vector<WeightedAdapter>& adapters,
                               const GgufLoraOptions& options) {
    const gguf::Model model(base);
    const std::vector<Pair> pairs = pairs_of(base, model, adapters);
    base.input().check_unchanged();
    const Scale scale(pairs);
    const std::vector<LoraTensor> tensors = tensors_of(pairs, scale, options.num_threads);
    const LoraFile file(model.architecture().name, scale.alpha, tensors, options.is_half);
    files::Output::Plan plan =
        merging::output_plan(options.output, base.input().name(), adapters, options.force);
    plan.bytes = file.size();
    plan.obstacle = [](const std::string& path) -> std::string {
        return files::gguf_type_at(path) == "adapter" ? "" : "is not a GGUF adapter";
    };
    files::Output output(std::move(plan));
    try {
        output.make("", [&](int fd) { file.write(fd); });
    } catch (const std::system_error& error) {
        files::refuse_output(output.target(), error.code().value());
    }
    files::check_stopped();
    output.commit();
    return file.size();
}

}  // namespace nola::exporting
