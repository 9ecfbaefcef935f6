#include "stop.h"

#include <atomic>

namespace nola::files {

namespace {

std::atomic<int> stopping{0};

}  // namespace

void stop_for(int signal) noexcept {
    stopping.store(signal, std::memory_order_relaxed);
}

int stopped_for() noexcept {
    return stopping.load(std::memory_order_relaxed);
}

void check_stopped() {
    if (stopped_for() != 0) {
        throw Stopped{};
    }
}

}  // namespace nola::files
