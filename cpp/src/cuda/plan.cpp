#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/tiles.h"
#include "generator.h"
#include "nola/cuda/jobs.h"
#include "nola/philox.h"

namespace nola::cuda {
namespace {

template <class T>
T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}

void check_pointer(const void* pointer, const char* name) {
    if (pointer == nullptr) {
        throw std::invalid_argument(std::string(name) + ": must not be null");
    }
}

Slots make_slots(const Matrix& matrix) {
    const Window& window = matrix.window;
    Slots slots{};
    if (window.rows() == 0 || window.cols() == 0) {
        return slots;
    }
    const bool contiguous = window.cols() == matrix.shape.cols || window.rows() == 1;
    const std::uint64_t runs = contiguous ? 1 : window.rows();
    slots.first = std::uint64_t{window.row_begin} * matrix.shape.cols + window.col_begin;
    slots.step = matrix.shape.cols;
    slots.run_length = contiguous ? window.rows() * window.cols() : window.cols();
    // One run begins where it begins; of many, some begin at the last element of a stripe.
    const std::uint64_t lead = runs == 1 ? slots.first % kStripe : kStripe - 1;
    slots.per_run = ceil_div(lead + slots.run_length, std::uint64_t{kStripe});
    slots.count = runs * slots.per_run;
    return slots;
}

StreamWords make_stream_words(std::uint64_t stream) {
    const std::uint64_t product =
        std::uint64_t{kPhiloxMultiplier1} * static_cast<std::uint32_t>(stream);
    return {static_cast<std::uint32_t>(stream >> 32), static_cast<std::uint32_t>(product >> 32),
            static_cast<std::uint32_t>(product)};
}

// What expansions and projections share; checks the matrix.
template <class Job>
Job make_basis_job(const Matrix& matrix) {
    check_matrix(matrix);
    Job job{};
    job.slots = make_slots(matrix);
    job.stream = make_stream_words(matrix.stream);
    job.gain = gain(matrix.basis, matrix.num_basis);
    job.num_basis = matrix.num_basis;
    job.draws = draw_count(matrix);
    return job;
}

// Cuts a projection into chunks of the window and groups of bases: enough pieces for a large
// device, a workspace that stays small. Sums depend on this, so it depends on the task alone.
void partition(ProjectJob& job) {
    constexpr std::uint64_t kUsualChunks = 64;
    constexpr std::uint64_t kMostChunks = 1024;
    constexpr std::uint64_t kMostPieces = 16384;
    job.groups = static_cast<std::uint32_t>(ceil_div(job.num_basis, std::uint64_t{kGroupBases}));
    job.units = ceil_div(job.slots.count, std::uint64_t{kUnitSlots});
    const std::uint64_t wanted =
        std::min(std::clamp(job.units / kUsualChunks, kUsualChunks, kMostChunks),
                 std::max(std::uint64_t{1}, kMostPieces / job.groups));
    job.chunks = static_cast<std::uint32_t>(std::min(job.units, wanted));
}

// A warp with several groups reads its gradients once for all of them, which is worth it once there
// are enough warps; sums do not depend on it.
std::uint32_t choose_groups_per_item(const std::vector<ProjectJob>& jobs) {
    constexpr std::uint64_t kEnoughWarps = 2048;
    std::uint64_t pieces = 0;
    for (const ProjectJob& job : jobs) {
        pieces += std::uint64_t{job.chunks} * job.groups;
    }
    return pieces <= kEnoughWarps ? 1 : kMaxGroupsPerItem;
}

std::uint64_t sums_of(const ProjectJob& job) {
    return std::uint64_t{job.chunks} * job.groups * kGroupBases;
}

template <class Job>
void check_count(const std::vector<Job>& tasks) {
    if (tasks.size() > std::numeric_limits<std::uint32_t>::max()) {
        throw std::invalid_argument("tasks: more than 2^32");
    }
}

template <class Task>
void check_tasks(const std::vector<Task>& tasks) {
    check_count(tasks);
    for (const Task& task : tasks) {
        const Matrix& first = tasks.front().matrix;
        if (task.matrix.seed != first.seed || task.matrix.basis != first.basis) {
            throw std::invalid_argument("tasks: have more than one seed or kind of basis");
        }
    }
}

}  // namespace

Plan<ExpandJob> plan_expand(const std::vector<ExpandTask>& tasks) {
    check_tasks(tasks);
    Plan<ExpandJob> plan;
    plan.jobs.reserve(tasks.size());
    std::uint64_t end = 0;
    for (const ExpandTask& task : tasks) {
        auto job = make_basis_job<ExpandJob>(task.matrix);
        if (job.slots.count != 0) {
            check_pointer(task.coefficients, "coefficients");
            check_pointer(task.out, "out");
        }
        job.coefficients = task.coefficients;
        job.out = task.out;
        end += ceil_div(job.slots.count, std::uint64_t{kExpandSlots});
        job.end = end;
        plan.jobs.push_back(job);
    }
    return plan;
}

std::size_t project_workspace(const Matrix& matrix) {
    ProjectJob job = make_basis_job<ProjectJob>(matrix);
    partition(job);
    return static_cast<std::size_t>(sums_of(job)) * sizeof(double);
}

Plan<ProjectJob> plan_project(const std::vector<ProjectTask>& tasks) {
    check_tasks(tasks);
    Plan<ProjectJob> plan;
    plan.jobs.reserve(tasks.size());
    std::uint64_t end_groups = 0;
    std::uint64_t sums = 0;
    for (const ProjectTask& task : tasks) {
        auto job = make_basis_job<ProjectJob>(task.matrix);
        check_pointer(task.out, "out");
        if (job.slots.count != 0) {
            check_pointer(task.grad, "grad");
        }
        job.grad = task.grad;
        job.out = task.out;
        partition(job);
        job.workspace = sums;
        sums += sums_of(job);
        end_groups += job.groups;
        job.end_groups = end_groups;
        plan.jobs.push_back(job);
    }
    std::uint64_t end = 0;
    const std::uint32_t groups_per_item = choose_groups_per_item(plan.jobs);
    for (ProjectJob& job : plan.jobs) {
        job.groups_per_item = groups_per_item;
        end += std::uint64_t{job.chunks} * ceil_div(job.groups, groups_per_item);
        job.end = end;
    }
    plan.workspace = static_cast<std::size_t>(sums) * sizeof(double);
    return plan;
}

Plan<MergeJob> plan_merge(ElementType type, const std::vector<MergeTask>& tasks) {
    check_count(tasks);
    Plan<MergeJob> plan;
    plan.jobs.reserve(tasks.size());
    std::uint64_t end = 0;
    for (const MergeTask& task : tasks) {
        MergeJob job{};
        if (task.rank > std::numeric_limits<std::uint32_t>::max()) {
            throw std::invalid_argument("rank: " + std::to_string(task.rank) + " is above 2^32");
        }
        if (task.stride < task.cols || task.a_stride < task.cols) {
            throw std::invalid_argument("stride: less than a row");
        }
        if (task.rows != 0 && task.cols != 0) {
            check_pointer(task.base, "base");
            check_pointer(task.out, "out");
            if (task.rank != 0) {
                check_pointer(task.a, "a");
                check_pointer(task.b, "b");
            }
            job.col_tiles = ceil_div(std::uint64_t{task.cols}, std::uint64_t{kMergeTileCols});
            end +=
                job.col_tiles * ceil_div(std::uint64_t{task.rows}, std::uint64_t{kMergeTileRows});
        }
        job.end = end;
        job.base = task.base;
        job.out = task.out;
        job.rows = task.rows;
        job.cols = task.cols;
        job.stride = task.stride;
        job.b = task.b;
        job.a = task.a;
        job.a_stride = task.a_stride;
        job.rank = static_cast<std::uint32_t>(task.rank);
        job.scaling = task.scaling;
        const std::uintptr_t vector = 4 * element_size(type);
        const auto is_aligned = [vector](const void* pointer) {
            return reinterpret_cast<std::uintptr_t>(pointer) % vector == 0;
        };
        job.is_aligned = static_cast<std::uint32_t>(task.stride % 4 == 0 && is_aligned(task.base) &&
                                                    is_aligned(task.out));
        plan.jobs.push_back(job);
    }
    return plan;
}

}  // namespace nola::cuda
