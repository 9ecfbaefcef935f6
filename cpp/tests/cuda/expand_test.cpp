#include "nola/expand.h"

#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>

#include "cuda/host_threads.h"
#include "reference.h"

namespace {

using nola::Basis;
using nola::ElementType;
using nola::Matrix;
using nola::Shape;
using nola::Window;
using nola::cuda::ExpandTask;

constexpr std::uint64_t kSeed = 0x123456789ABCDEFULL;
constexpr float kGuard = 12345.0F;

// A window to expand, between guards, and what the CPU makes of it.
struct Case {
    std::uint64_t stream;
    std::vector<float> alpha;
    Shape shape;
    Window window;
    std::vector<float> out;

    Case(std::size_t k, Shape whole, Window part)
        : stream(0xFEDCBA9876543210ULL + k),
          alpha(nola::test::random_floats(k, static_cast<std::uint32_t>(k))),
          shape(whole),
          window(part),
          out(part.rows() * part.cols() + 2, kGuard) {}

    Matrix matrix(Basis kind) const { return {kind, kSeed, stream, alpha.size(), shape, window}; }
    ExpandTask task(Basis kind) { return {matrix(kind), alpha.data(), out.data() + 1}; }
    bool is_right(Basis kind) const {
        std::vector<float> expected(out.size(), kGuard);
        nola::expand(matrix(kind), alpha.data(), expected.data() + 1, 1);
        return std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) == 0;
    }
};

std::vector<Case> cases() {
    std::vector<Case> all;
    // More bases than fit into shared memory at once, of either kind, among them.
    for (const std::size_t k : {1U, 3U, 4U, 31U, 32U, 33U, 70U, 1100U, 2051U}) {
        all.push_back({k, {1, 1}, {0, 1, 0, 1}});
        all.push_back({k, {0, 5}, {0, 0, 0, 5}});
        all.push_back({k, {9, 64}, Window::whole({9, 64})});
        all.push_back({k, {37, 59}, Window::whole({37, 59})});
        all.push_back({k, {37, 59}, {3, 30, 7, 58}});
        all.push_back({k, {37, 59}, {5, 6, 7, 8}});
        all.push_back({k, {37, 16}, {2, 37, 3, 4}});
        all.push_back({k, {3, 5000}, {1, 2, 100, 4900}});
        all.push_back({k, {std::size_t{1} << 22, 4096}, {4194303, 4194304, 4000, 4096}});
    }
    return all;
}

}  // namespace

TEST_CASE("cuda expand: the bits of the CPU for one job at a time") {
    for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
        for (Case& one : cases()) {
            const auto plan = nola::cuda::plan_expand({one.task(kind)});
            const nola::cuda::OneJob<nola::cuda::ExpandJob> job{plan.jobs[0]};
            nola::test::run_expand(kind, kSeed, ElementType::kFloat32, job, job.job.end, 3);
            CHECK(one.is_right(kind));
        }
    }
}

TEST_CASE("cuda expand: a group, for any grid") {
    for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
        for (const std::uint64_t per_block : {1U, 2U, 7U, 1000U}) {
            auto all = cases();
            std::vector<ExpandTask> tasks;
            tasks.reserve(all.size());
            for (Case& one : all) {
                tasks.push_back(one.task(kind));
            }
            const auto plan = nola::cuda::plan_expand(tasks);
            nola::test::run_expand(kind, kSeed, ElementType::kFloat32, nola::test::table_of(plan),
                                   plan.jobs.back().end, per_block);
            for (const Case& one : all) {
                CHECK(one.is_right(kind));
            }
        }
    }
}

TEST_CASE("cuda expand: halves and bfloat16 are the rounded sums") {
    Case one(70, {37, 59}, {3, 30, 7, 58});
    const std::size_t count = one.window.rows() * one.window.cols();
    std::vector<std::uint16_t> out(count);
    for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
        ExpandTask task = one.task(Basis::kRademacher);
        task.out = out.data();
        const auto plan = nola::cuda::plan_expand({task});
        nola::test::run_expand(Basis::kRademacher, kSeed, type, nola::test::table_of(plan),
                               plan.jobs[0].end, 1);
        std::vector<float> wide(count);
        nola::expand(one.matrix(Basis::kRademacher), one.alpha.data(), wide.data(), 1);
        // A merge of nothing into zero rounds a value and changes nothing else.
        std::vector<std::uint16_t> expected(count);
        const float unit = 1.0F;
        REQUIRE(nola::merge(expected.data(), type, 1, count, {&unit, wide.data(), 1, 1.0F}, 1));
        CHECK(out == expected);
    }
}

TEST_CASE("cuda expand: a plan is for one seed and one kind of basis") {
    Case one(4, {2, 3}, {0, 2, 0, 3});
    const ExpandTask task = one.task(Basis::kRademacher);
    ExpandTask other_seed = task;
    other_seed.matrix.seed += 1;
    CHECK_NOTHROW(nola::cuda::plan_expand({task, task}));
    CHECK_THROWS_AS(nola::cuda::plan_expand({task, other_seed}), std::invalid_argument);
    CHECK_THROWS_AS(nola::cuda::plan_expand({task, one.task(Basis::kUniform)}),
                    std::invalid_argument);
}

TEST_CASE("cuda expand: a plan refuses what the CPU refuses") {
    Case good(4, {2, 3}, {0, 2, 0, 3});
    const auto plan = [](const ExpandTask& task) { return nola::cuda::plan_expand({task}); };
    ExpandTask task = good.task(Basis::kRademacher);
    CHECK_NOTHROW(plan(task));
    task.matrix.num_basis = 0;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task = good.task(Basis::kRademacher);
    task.matrix.window.col_end = 4;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task = good.task(Basis::kRademacher);
    task.out = nullptr;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task = good.task(Basis::kRademacher);
    task.coefficients = nullptr;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task.matrix.window.row_end = 0;  // nothing to read
    CHECK_NOTHROW(plan(task));
}
