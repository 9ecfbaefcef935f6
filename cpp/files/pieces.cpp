#include "pieces.h"

#include <atomic>
#include <exception>
#include <mutex>

#include "parallel.h"
#include "stop.h"

namespace nola::files {

namespace {

// What was thrown by the first piece of those that threw.
class FirstError {
public:
    bool is_set() const { return is_set_.load(std::memory_order_relaxed); }

    void note(std::size_t piece, std::exception_ptr error) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!is_set() || piece < piece_) {
            piece_ = piece;
            error_ = std::move(error);
            is_set_.store(true, std::memory_order_relaxed);
        }
    }

    void rethrow() const {
        if (error_ != nullptr) {
            std::rethrow_exception(error_);
        }
    }

private:
    std::atomic<bool> is_set_{false};
    std::mutex mutex_;
    std::size_t piece_ = 0;
    std::exception_ptr error_;
};

}  // namespace

void for_each_piece(std::size_t count, int num_threads,
                    const std::function<void(std::size_t)>& work) {
    FirstError error;
    parallel_for(count, num_threads, [&](std::size_t piece) {
        if (error.is_set()) {
            return;
        }
        try {
            check_stopped();
            work(piece);
        } catch (...) {
            error.note(piece, std::current_exception());
        }
    });
    error.rethrow();
}

}  // namespace nola::files
