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

#include "adapters/expanded.h"
#include "adapters/factor_layout.h"
#include "files/failure.h"
#include "files/output.h"
#include "files/signature.h"
#include "files/stop.h"
#include "gguf/targets.h"
#include "lora_alpha.h"
#include "nola/merge.h"

namespace nola::exporting {

namespace {

using adapters::Module;
using adapters::WeightedAdapter;
using gguf::Target;
using Values = std::vector<float>;

// Elements that are made at once.
constexpr std::uint64_t kAtOnce = 1U << 20;
constexpr std::uint32_t kVersion = 3;
constexpr std::uint32_t kFloat = 6;  // types of metadata values
constexpr std::uint32_t kString = 8;
constexpr std::uint32_t kF32 = 0;  // types of tensors
constexpr std::uint32_t kF16 = 1;

// One adapter's share in a tensor.
struct Term {
    const WeightedAdapter* adapter;
    const Module* module;
    Target target;

    Values rows(Factor factor, std::uint64_t begin, std::uint64_t end, int num_threads) const {
        const bool is_a = factor == Factor::kA;
        Matrix matrix = adapter->adapter.factor(
            *module, factor, static_cast<std::size_t>(is_a ? target.inputs() : target.outputs()));
        matrix.window.row_begin = static_cast<std::size_t>(begin);
        matrix.window.row_end = static_cast<std::size_t>(end);
        return adapters::expanded(matrix, is_a ? module->alpha : module->beta, num_threads);
    }
};

// All that changes one tensor of the base.
struct Pair {
    std::string tensor;
    std::vector<Term> terms;

    std::size_t rank() const {
        std::size_t rank = 0;
        for (const Term& term : terms) {
            rank += term.adapter->rank();
        }
        return rank;
    }
};

// A tensor of the output, made some rows at a time.
struct LoraTensor {
    std::string name;
    std::uint64_t rows;
    std::uint64_t cols;
    std::uint64_t step;  // rows that are made at once, or a multiple of it
    std::function<Values(std::uint64_t begin, std::uint64_t end)> make;
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
                {&adapter, &adapter.adapter.modules[i], targets[i]});
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
                scalings.insert(term.adapter->scaling());
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
Values rows_of_a(const Pair& pair, std::uint64_t begin, std::uint64_t end, int num_threads) {
    Values values;
    std::uint64_t first = 0;
    for (const Term& term : pair.terms) {
        const std::uint64_t last = first + term.adapter->rank();
        const std::uint64_t from = std::max(begin, first);
        const std::uint64_t to = std::min(end, last);
        if (from < to) {
            const Values own = term.rows(Factor::kA, from - first, to - first, num_threads);
            values.insert(values.end(), own.begin(), own.end());
        }
        first = last;
    }
    return values;
}

// B of all adapters, side by side, each with its scaling and the file's factor unless alpha says
// both.
Values rows_of_b(const Pair& pair, const Scale& scale, std::uint64_t begin, std::uint64_t end,
                 int num_threads) {
    const std::size_t rank = pair.rank();
    const auto count = static_cast<std::size_t>(end - begin);
    Values values(count * rank);
    std::size_t before = 0;
    for (const Term& term : pair.terms) {
        const std::size_t own_rank = term.adapter->rank();
        Values own = term.rows(Factor::kB, begin, end, num_threads);
        if (term.target.head_rows != 0) {
            own = adapters::interleaved(own, own_rank,
                                        static_cast<std::size_t>(term.target.head_rows));
        }
        if (!scale.is_exact) {
            nola::scale(own.data(), own.size(),
                        term.adapter->scaling() * (static_cast<double>(rank) / scale.largest));
        }
        for (std::size_t row = 0; row < count; ++row) {
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
        const Target& target = pair.terms[0].target;
        tensors.push_back({pair.tensor + ".lora_a", pair.rank(), target.inputs(), 1,
                           [&pair, num_threads](std::uint64_t begin, std::uint64_t end) {
                               return rows_of_a(pair, begin, end, num_threads);
                           }});
        tensors.push_back({pair.tensor + ".lora_b", target.outputs(), pair.rank(),
                           std::max<std::uint64_t>(1, target.head_rows),
                           [&pair, &scale, num_threads](std::uint64_t begin, std::uint64_t end) {
                               return rows_of_b(pair, scale, begin, end, num_threads);
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

    void write_tensor(int fd, const LoraTensor& tensor, std::uint64_t at) const {
        const std::uint64_t step =
            std::max<std::uint64_t>(1, kAtOnce / (tensor.cols * tensor.step)) * tensor.step;
        for (std::uint64_t begin = 0; begin < tensor.rows; begin += step) {
            files::check_stopped();
            const Values values = tensor.make(begin, std::min(begin + step, tensor.rows));
            const std::uint64_t offset = at + begin * tensor.cols * element_bytes();
            if (is_half_) {
                const std::vector<std::uint16_t> halves = halves_of(values, tensor.name);
                files::write_all(fd, halves.data(), halves.size() * 2, offset);
            } else {
                check_finite(values, tensor.name);
                files::write_all(fd, values.data(), values.size() * 4, offset);
            }
        }
    }

    [[noreturn]] void refuse(const std::string& name) const {
        throw files::Failure("", name,
                             std::string("is not finite in ") + (is_half_ ? "F16" : "F32"),
                             "NotFiniteError");
    }

    void check_finite(const Values& values, const std::string& name) const {
        if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
            refuse(name);
        }
    }

    // As a merge into zeros rounds them, but for the sign of a zero.
    std::vector<std::uint16_t> halves_of(const Values& values, const std::string& name) const {
        std::vector<std::uint16_t> halves(values.size());
        const float one = 1.0F;
        const LowRank update{&one, values.data(), 1, 1.0F};
        if (!nola::merge(halves.data(), ElementType::kFloat16, 1, values.size(), update, 1)) {
            refuse(name);
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

files::Output::Plan output_plan(const files::GgufFile& base,
                                const std::vector<WeightedAdapter>& adapters,
                                const GgufLoraOptions& options, std::uint64_t bytes) {
    files::Output::Plan plan;
    plan.target = options.output;
    plan.inputs.push_back(base.input().name());
    for (const WeightedAdapter& adapter : adapters) {
        plan.inputs.push_back(adapter.path);
    }
    plan.force = options.force;
    plan.bytes = bytes;
    plan.obstacle = [](const std::string& path) -> std::string {
        return files::gguf_type_at(path) == "adapter" ? "" : "is not a GGUF adapter";
    };
    return plan;
}

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
    files::Output output(output_plan(base, adapters, options, file.size()));
    try {
        const int fd = output.create("");
        try {
            file.write(fd);
        } catch (...) {
            ::close(fd);
            throw;
        }
        output.finish("", fd);
    } catch (const std::system_error& error) {
        files::refuse_output(output.target(), error.code().value());
    }
    files::check_stopped();
    output.commit();
    return file.size();
}

}  // namespace nola::exporting
