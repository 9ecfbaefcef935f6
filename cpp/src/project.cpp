#include "nola/project.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "alignment.h"
#include "dispatch.h"
#include "generator.h"
#include "parallel.h"
#include "stripes.h"

namespace nola {
namespace {

using kernels::kRademacherPerDraw;
using kernels::kStripeLanes;
using kernels::kUniformPerDraw;

// Pieces are summed in fp32, the sums of pieces in double. Consecutive pieces form a chunk with
// sums of its own; the number of chunks depends on the arguments only, and bounds both the
// threads that can work at once and the memory for sums.
constexpr std::size_t kMaxChunks = 64;
constexpr std::size_t kMaxChunkSums = std::size_t{1} << 22;

struct Chunks {
    std::size_t pieces;
    std::size_t count;

    Chunks(std::size_t piece_count, std::size_t num_sums)
        : pieces(piece_count),
          count(std::min(
              {piece_count, kMaxChunks, std::max<std::size_t>(1, kMaxChunkSums / num_sums)})) {}
    std::size_t begin(std::size_t chunk) const { return pieces * chunk / count; }
};

// Adds one piece's contribution to `sums` (draws * per-draw doubles); for rademacher it is the
// signed sum, total - 2 * (sum over the elements of sign -1).
class PieceProjector {
public:
    PieceProjector(const kernels::KernelSet& kernel_set, const Matrix& matrix, std::uint32_t draws)
        : kernels_(kernel_set),
          generator_(make_generator(matrix)),
          basis_(matrix.basis),
          draws_(draws),
          partial_(std::size_t{draws} * (basis_ == Basis::kRademacher
                                             ? kRademacherPerDraw
                                             : kUniformPerDraw * kStripeLanes)) {}

    // Null where memory runs out.
    static std::unique_ptr<PieceProjector> make(const kernels::KernelSet& kernel_set,
                                                const Matrix& matrix, std::uint32_t draws) {
        try {
            return std::make_unique<PieceProjector>(kernel_set, matrix, draws);
        } catch (const std::bad_alloc&) {
            return nullptr;
        }
    }

    void add(const Piece& piece, const float* grad, double* sums) {
        const StripeSpan span(piece);
        const auto length = static_cast<std::size_t>(piece.end - piece.begin);
        const float* stripes = grad;
        if (!span.whole(piece)) {
            std::fill_n(padded_, std::size_t{span.range.count} * kernels::kStripe, 0.0F);
            std::copy_n(grad, length, padded_ + span.lead);
            stripes = padded_;
        }
        std::fill(partial_.begin(), partial_.end(), 0.0F);
        if (basis_ == Basis::kRademacher) {
            kernels_.project_rademacher(generator_, span.range, stripes, draws_, partial_.data());
            double total = 0.0;
            for (std::size_t e = 0; e < length; ++e) {
                total += static_cast<double>(grad[e]);
            }
            for (std::size_t i = 0; i < partial_.size(); ++i) {
                sums[i] += total - 2.0 * static_cast<double>(partial_[i]);
            }
            return;
        }
        kernels_.project_uniform(generator_, span.range, stripes, draws_, partial_.data());
        for (std::size_t i = 0; i < std::size_t{draws_} * kUniformPerDraw; ++i) {
            for (std::size_t lane = 0; lane < kStripeLanes; ++lane) {
                sums[i] += static_cast<double>(partial_[i * kStripeLanes + lane]);
            }
        }
    }

private:
    const kernels::KernelSet& kernels_;
    kernels::Generator generator_;
    Basis basis_;
    std::uint32_t draws_;
    std::vector<float> partial_;
    alignas(64) float padded_[Pieces::kPieceElements];
};

// Asks the caller, on its own thread and not too often, whether to give up.
class Stop {
public:
    explicit Stop(const std::function<bool()>& stopped)
        : stopped_(stopped), caller_(std::this_thread::get_id()), asked_(Clock::now()) {}

    bool now() {
        if (stopped_ != nullptr && std::this_thread::get_id() == caller_ &&
            Clock::now() - asked_ >= std::chrono::milliseconds(100)) {
            asked_ = Clock::now();
            if (stopped_()) {
                requested_.store(true, std::memory_order_relaxed);
            }
        }
        return requested();
    }
    bool requested() const { return requested_.load(std::memory_order_relaxed); }

private:
    using Clock = std::chrono::steady_clock;
    const std::function<bool()>& stopped_;
    std::thread::id caller_;
    Clock::time_point asked_;  // of the caller's thread alone
    std::atomic<bool> requested_{false};
};

}  // namespace

bool project(const Matrix& matrix, const float* grad, float* out, int num_threads,
             const std::function<bool()>& stopped) {
    check_matrix(matrix);
    check_aligned("grad", grad, alignof(float));
    check_aligned("out", out, alignof(float));
    const std::uint32_t draws = draw_count(matrix);
    const std::size_t num_sums =
        std::size_t{draws} *
        (matrix.basis == Basis::kRademacher ? kRademacherPerDraw : kUniformPerDraw);

    const Pieces pieces(matrix.shape, matrix.window);
    const Chunks chunks(pieces.count(), num_sums);
    std::vector<double> sums(chunks.count * num_sums, 0.0);
    const kernels::KernelSet& kernel_set = active_kernels();
    std::atomic<bool> exhausted{false};
    Stop stop(stopped);
    parallel_for(chunks.count, num_threads, [&](std::size_t chunk) {
        // No exception may leave a parallel region; this is the only one there is.
        const auto projector = PieceProjector::make(kernel_set, matrix, draws);
        if (projector == nullptr) {
            exhausted.store(true, std::memory_order_relaxed);
            return;
        }
        for (std::size_t index = chunks.begin(chunk); index < chunks.begin(chunk + 1); ++index) {
            if (stop.now()) {
                return;
            }
            const Piece piece = pieces[index];
            if (piece.begin < piece.end) {
                projector->add(piece, grad + piece.offset, sums.data() + chunk * num_sums);
            }
        }
    });

    if (exhausted.load(std::memory_order_relaxed)) {
        throw std::bad_alloc();
    }
    if (stop.requested()) {
        return false;
    }
    const FpEnvironment environment;
    const auto g = static_cast<double>(gain(matrix.basis, matrix.num_basis));
    for (std::size_t i = 0; i < matrix.num_basis; ++i) {
        double sum = 0.0;
        for (std::size_t chunk = 0; chunk < chunks.count; ++chunk) {
            sum += sums[chunk * num_sums + i];
        }
        out[i] = static_cast<float>(sum * g);
    }
    return true;
}

}  // namespace nola
