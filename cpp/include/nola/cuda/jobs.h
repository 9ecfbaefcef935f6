// What a launch on a CUDA device works on: one job for each matrix.
//
// Jobs are made on the host from tasks, are plain bytes, and can be made without a GPU. One job
// goes into a launch by value; a list of jobs, a group, is copied to the device once by the caller
// and serves any number of launches there, as long as the pointers in it stay valid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "nola/basis.h"
#include "nola/merge.h"

namespace nola::cuda {

// `out`: window.rows() x window.cols() elements of the launch's type, row-major, contiguous.
struct ExpandTask {
    Matrix matrix;
    const float* coefficients = nullptr;  // num_basis
    void* out = nullptr;
};

// `grad`: as `out` above. `out`: num_basis.
struct ProjectTask {
    Matrix matrix;
    const void* grad = nullptr;
    float* out = nullptr;
};

// out = base + scaling * b a, rounded once. `base` and `out`, which may be one, are rows x cols
// elements of the launch's type, `stride` elements from row to row; b is rows x rank, contiguous;
// a is rank x cols, `a_stride` elements from row to row.
struct MergeTask {
    const void* base = nullptr;
    void* out = nullptr;
    std::size_t rows = 0;
    std::size_t cols = 0;
    std::size_t stride = 0;
    const float* b = nullptr;
    const float* a = nullptr;
    std::size_t a_stride = 0;
    std::size_t rank = 0;
    float scaling = 1.0F;
};

// The stripes that a window touches, row after row, or as one run where rows follow one another
// without a gap. A slot is one stripe of one run.
struct Slots {
    std::uint64_t first;       // flat index of the window's first element
    std::uint64_t step;        // elements of the matrix from run to run
    std::uint64_t run_length;  // elements of a run
    std::uint64_t per_run;     // slots of a run; some may lie behind it
    std::uint64_t count;
};

// The words of a counter that a stream fixes, and the product of the lower one (see philox.h).
struct StreamWords {
    std::uint32_t high;
    std::uint32_t product_high;
    std::uint32_t product_low;
};

struct ExpandJob {
    std::uint64_t end;  // tiles of this job and of those before it
    Slots slots;
    StreamWords stream;
    float gain;
    std::uint64_t num_basis;
    std::uint32_t draws;
    const float* coefficients;
    void* out;
};

// Sums are made in two launches: warps add up chunks of a window for 32 bases at a time into the
// workspace, then the chunks of each basis are added. Both partitions depend on the task alone.
struct ProjectJob {
    std::uint64_t end;         // warps' items of this job and of those before it
    std::uint64_t end_groups;  // groups of 32 bases, likewise
    Slots slots;
    StreamWords stream;
    float gain;
    std::uint64_t num_basis;
    std::uint32_t draws;
    std::uint32_t groups;           // of 32 bases
    std::uint32_t groups_per_item;  // that one warp takes on
    std::uint32_t chunks;
    std::uint64_t units;      // of the window; a chunk is a run of them
    std::uint64_t workspace;  // where this job's sums begin, chunks x groups x 32 doubles
    const void* grad;
    float* out;
};

struct MergeJob {
    std::uint64_t end;  // tiles of this job and of those before it
    const void* base;
    void* out;
    std::uint64_t rows;
    std::uint64_t cols;
    std::uint64_t stride;
    const float* b;
    const float* a;
    std::uint64_t a_stride;
    std::uint64_t col_tiles;
    std::uint32_t rank;
    float scaling;
    std::uint32_t is_aligned;  // whether four elements of a row can be read at once
};

// A group on the host. `workspace`: bytes that its launches need (project only).
template <class Job>
struct Plan {
    std::vector<Job> jobs;
    std::size_t workspace = 0;
};

// Throw std::invalid_argument, naming the argument, for what expand(), project() and merge() on the
// host refuse, and for matrices of several seeds or kinds of basis: a launch has one of each, since
// an adapter has. Null pointers are refused where elements are to be read or written.
Plan<ExpandJob> plan_expand(const std::vector<ExpandTask>& tasks);
Plan<ProjectJob> plan_project(const std::vector<ProjectTask>& tasks);
Plan<MergeJob> plan_merge(ElementType type, const std::vector<MergeTask>& tasks);

// Bytes that the projection of one matrix needs.
std::size_t project_workspace(const Matrix& matrix);

}  // namespace nola::cuda
