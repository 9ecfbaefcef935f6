#include "parallel.h"

#include <algorithm>
#include <thread>
#ifdef _OPENMP
#include <omp.h>
#include <sys/types.h>
#include <unistd.h>

#include <exception>
#include <mutex>
#include <vector>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#elif defined(__linux__)
#include <sched.h>
#endif

namespace nola {

namespace {

// More than this gain nothing, and a wrong number should not cost gigabytes of stacks.
constexpr int kThreadsPerProcessor = 4;

#ifdef _OPENMP
// A child made by fork() inherits libgomp's record of its threads, but not the threads: a region
// in the child would wait for them for ever. Another library may have used them, so it does not
// matter whether this one has, and a child of the process that loaded it works with one thread.
const pid_t kLoadedBy = getpid();

// A thread that has ended counts against the limits until the kernel has forgotten it, shortly
// after it could be joined.
void wait_until_forgotten([[maybe_unused]] const std::vector<pid_t>& threads) {
#ifdef __linux__
    for (const pid_t thread : threads) {
        while (syscall(SYS_tgkill, getpid(), thread, 0) == 0) {
            std::this_thread::yield();
        }
    }
#endif
}

// How many threads can be made besides this one, up to `wanted`: they are made, and ended again.
int startable_threads(int wanted) {
    const auto count = static_cast<std::size_t>(wanted);
    std::vector<std::thread> threads;
    std::vector<pid_t> ids(count, 0);
    std::mutex gate;
    {
        const std::lock_guard<std::mutex> closed(gate);
        try {
            threads.reserve(count);
            while (threads.size() < count) {
                threads.emplace_back([&gate, id = &ids[threads.size()]] {
#ifdef __linux__
                    *id = static_cast<pid_t>(syscall(SYS_gettid));
#endif
                    const std::lock_guard<std::mutex> until_open(gate);
                });
            }
        } catch (const std::exception&) {  // a limit on threads, or on memory for their stacks
        }
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
    ids.resize(threads.size());
    wait_until_forgotten(ids);
    return static_cast<int>(threads.size());
}

// libgomp ends the process where it cannot make a thread, so whoever asks for more than ever before
// on this thread, whose helpers are its own, finds out first.
int available_threads(int wanted) {
    if (getpid() != kLoadedBy) {
        return 1;
    }
    thread_local int known = 1;
    if (wanted > known) {
        known = std::max(known, 1 + startable_threads(wanted - 1));
    }
    return std::min(wanted, known);
}

int default_threads() {
    return omp_get_max_threads();
}

int processors() {
    return omp_get_num_procs();
}
#else
// Threads are made for each loop, which ends without those that cannot be made.
int available_threads(int wanted) {
    return wanted;
}

// That this process may use.
int processors() {
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        return std::max(1, CPU_COUNT(&allowed));
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int default_threads() {
    return processors();
}
#endif

}  // namespace

int choose_threads(int num_threads, std::size_t pieces) {
    int threads = num_threads > 0 ? num_threads : default_threads();
    if (threads > kThreadsPerProcessor) {  // asking for the processors takes longer than the rest
        threads = std::min(threads, kThreadsPerProcessor * processors());
    }
    if (static_cast<std::size_t>(threads) > pieces) {
        threads = static_cast<int>(pieces);
    }
    return threads == 1 ? 1 : available_threads(threads);
}

}  // namespace nola
