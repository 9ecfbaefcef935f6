#include "nola/project.h"

#include <doctest/doctest.h>

#include <cmath>
#include <stdexcept>

#include "cuda/host_threads.h"
#include "reference.h"

namespace {

using nola::Basis;
using nola::ElementType;
using nola::Matrix;
using nola::Shape;
using nola::Window;
using nola::cuda::ProjectTask;

constexpr std::uint64_t kSeed = 42;

struct Case {
    std::size_t k;
    Shape shape;
    Window window;
    std::vector<float> grad;
    std::vector<float> out;

    Case(std::size_t num_basis, Shape whole, Window part)
        : k(num_basis),
          shape(whole),
          window(part),
          grad(nola::test::random_floats(part.rows() * part.cols(),
                                         static_cast<std::uint32_t>(num_basis))),
          out(num_basis + 1, -1.0F) {}

    Matrix matrix(Basis kind) const { return {kind, kSeed, 7 + k, k, shape, window}; }
    ProjectTask task(Basis kind) { return {matrix(kind), grad.data(), out.data()}; }

    // Against sums in double, relative to the gradient's norm; of many bases a few.
    bool is_right(Basis kind) const {
        const Matrix source = matrix(kind);
        const std::size_t step = k * grad.size() < 2000000 ? 1 : 97;
        double square = 0.0;
        for (const float g : grad) {
            square += static_cast<double>(g) * static_cast<double>(g);
        }
        const double allowed = 1e-6 * std::sqrt(square / static_cast<double>(k));
        for (std::size_t i = 0; i < k; i += step) {
            double sum = 0.0;
            for (std::size_t e = 0; e < grad.size(); ++e) {
                const std::uint64_t element = (window.row_begin + e / window.cols()) * shape.cols +
                                              window.col_begin + e % window.cols();
                sum += static_cast<double>(grad[e]) *
                       static_cast<double>(nola::test::basis_value(source, i, element));
            }
            sum *= static_cast<double>(nola::gain(kind, k));
            if (!(std::abs(static_cast<double>(out[i]) - sum) <= allowed)) {
                return false;
            }
        }
        return out[k] == -1.0F;
    }
};

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const std::size_t k : {1U, 2U, 31U, 32U, 33U, 70U, 300U}) {
        all.push_back({k, {1, 1}, {0, 1, 0, 1}});
        all.push_back({k, {0, 5}, {0, 0, 0, 5}});
        all.push_back({k, {9, 64}, Window::whole({9, 64})});
        all.push_back({k, {61, 127}, {2, 60, 1, 120}});
        all.push_back({k, {37, 16}, {2, 37, 3, 4}});
        all.push_back({k, {3, 5000}, {1, 2, 100, 4900}});
    }
    all.push_back({40, {16, 4096}, Window::whole({16, 4096})});    // chunks of several units
    all.push_back({1100, {200, 300}, Window::whole({200, 300})});  // several groups for a warp
    return all;
}

// A workspace with something in it, of which nothing may be left.
std::vector<double> dirty(std::size_t bytes) {
    return std::vector<double>(bytes / sizeof(double), 1e300);
}

}  // namespace

TEST_CASE("cuda project: the sums of the CPU, and a group's are those of its jobs") {
    for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
        auto grouped = cases();
        std::vector<ProjectTask> tasks;
        tasks.reserve(grouped.size());
        for (Case& one : grouped) {
            tasks.push_back(one.task(kind));
        }
        const auto group = nola::cuda::plan_project(tasks);
        nola::test::run_project(kind, kSeed, ElementType::kFloat32, nola::test::table_of(group),
                                group.jobs.back(), dirty(group.workspace).data());
        auto single = cases();
        for (std::size_t i = 0; i < single.size(); ++i) {
            const auto plan = nola::cuda::plan_project({single[i].task(kind)});
            const nola::cuda::OneJob<nola::cuda::ProjectJob> job{plan.jobs[0]};
            nola::test::run_project(kind, kSeed, ElementType::kFloat32, job, job.job,
                                    dirty(plan.workspace).data());
            CAPTURE(single[i].k);
            CAPTURE(single[i].window.cols());
            CHECK(single[i].is_right(kind));
            CHECK(single[i].out == grouped[i].out);
        }
    }
}

TEST_CASE("cuda project: gradients of two bytes are widened") {
    for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
        for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
            Case one(40, {16, 300}, Window::whole({16, 300}));
            std::vector<std::uint16_t> narrow(one.grad.size());
            const float unit = 1.0F;
            REQUIRE(nola::merge(narrow.data(), type, 1, narrow.size(),
                                {&unit, one.grad.data(), 1, 1.0F}, 1));
            for (std::size_t e = 0; e < narrow.size(); ++e) {
                one.grad[e] = nola::cuda::load_element(type, narrow.data(), e);
            }
            ProjectTask task = one.task(kind);
            task.grad = narrow.data();
            const auto plan = nola::cuda::plan_project({task});
            nola::test::run_project(kind, kSeed, type, nola::test::table_of(plan), plan.jobs.back(),
                                    dirty(plan.workspace).data());
            CHECK(one.is_right(kind));
        }
    }
}

TEST_CASE("cuda project: a plan refuses what the CPU refuses") {
    Case good(4, {2, 3}, {0, 2, 0, 3});
    const auto plan = [](const ProjectTask& task) { return nola::cuda::plan_project({task}); };
    ProjectTask task = good.task(Basis::kUniform);
    CHECK_NOTHROW(plan(task));
    task.out = nullptr;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task = good.task(Basis::kUniform);
    task.grad = nullptr;
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
    task = good.task(Basis::kUniform);
    task.matrix.shape = {std::size_t{1} << 18, std::size_t{1} << 17};
    CHECK_THROWS_AS(plan(task), std::invalid_argument);
}
