// Runs every kernel on a GPU, alone and in groups, and compares with the CPU: a program of its own,
// small enough for compute-sanitizer. scripts/gpu_check.sh builds and runs it.
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "nola/cuda/launch.h"
#include "nola/expand.h"
#include "nola/merge.h"
#include "nola/project.h"

namespace {

using nola::Basis;
using nola::ElementType;
using nola::Shape;
using nola::Window;

constexpr std::uint64_t kSeed = 0x123456789ABCDEFULL;
int failures = 0;

void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) {
        std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
        std::exit(1);
    }
}

void expect(bool holds, const std::string& what) {
    if (!holds) {
        ++failures;
        std::fprintf(stderr, "FAILED %s\n", what.c_str());
    }
}

// Device memory that ends with its last element, so that a checker sees what lies beyond.
template <class T>
class Device {
public:
    explicit Device(const std::vector<T>& values) : count_(values.size()) {
        check(cudaMalloc(reinterpret_cast<void**>(&data_),
                         std::max(count_, std::size_t{1}) * sizeof(T)),
              "cudaMalloc");
        check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
    }
    Device(Device&& other) noexcept : data_(other.data_), count_(other.count_) {
        other.data_ = nullptr;
    }
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;
    ~Device() { cudaFree(data_); }

    T* data() const { return data_; }
    std::vector<T> values() const {
        std::vector<T> result(count_);
        check(cudaMemcpy(result.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
        return result;
    }

private:
    T* data_ = nullptr;
    std::size_t count_;
};

std::vector<float> random_floats(std::size_t count, unsigned seed, float scale = 1.0F) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float& value : values) {
        value = scale * normal(engine);
    }
    return values;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <class Job>
nola::cuda::DeviceGroup<Job> group_of(const nola::cuda::Plan<Job>& plan, const Device<Job>& table) {
    return {table.data(), static_cast<std::uint32_t>(plan.jobs.size()), plan.jobs.back()};
}

struct Case {
    std::size_t k;
    Shape shape;
    Window window;
};

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const std::size_t k : {1U, 33U, 130U, 1100U}) {
        all.push_back({k, {1, 1}, {0, 1, 0, 1}});
        all.push_back({k, {0, 5}, {0, 0, 0, 5}});
        all.push_back({k, {37, 59}, {3, 30, 7, 58}});
        all.push_back({k, {3, 5000}, {1, 2, 100, 4900}});
        all.push_back({k, {16, 1024}, Window::whole({16, 1024})});
    }
    all.push_back({4100, {16, 1024}, Window::whole({16, 1024})});  // warps with several groups
    return all;
}

void check_expand(Basis kind) {
    const std::vector<Case> all = cases();
    std::vector<Device<float>> coefficients;
    std::vector<Device<float>> single;
    std::vector<Device<float>> grouped;
    std::vector<nola::cuda::ExpandTask> tasks;
    std::vector<std::vector<float>> expected;
    for (const Case& one : all) {
        const auto alpha = random_floats(one.k, static_cast<unsigned>(one.k));
        const std::vector<float> none(one.window.rows() * one.window.cols(), -1.0F);
        expected.push_back(none);
        const nola::Matrix matrix{kind, kSeed, one.k, one.k, one.shape, one.window};
        nola::expand(matrix, alpha.data(), expected.back().data());
        coefficients.emplace_back(alpha);
        single.emplace_back(none);
        grouped.emplace_back(none);
        const auto plan =
            nola::cuda::plan_expand({{matrix, coefficients.back().data(), single.back().data()}});
        check(nola::cuda::expand(kind, kSeed, ElementType::kFloat32, plan.jobs[0], nullptr),
              "expand");
        tasks.push_back({matrix, coefficients.back().data(), grouped.back().data()});
    }
    const auto plan = nola::cuda::plan_expand(tasks);
    const Device<nola::cuda::ExpandJob> table(plan.jobs);
    check(nola::cuda::expand(kind, kSeed, ElementType::kFloat32, group_of(plan, table), nullptr),
          "expand group");
    check(cudaDeviceSynchronize(), "expand");
    for (std::size_t i = 0; i < all.size(); ++i) {
        const std::string name = "expand, case " + std::to_string(i);
        expect(same_bits(single[i].values(), expected[i]), name);
        expect(same_bits(grouped[i].values(), expected[i]), name + " of a group");
    }
}

// Large enough for blocks of several tiles, and in the types of two bytes.
void check_large_expand(Basis kind) {
    constexpr std::size_t kBases = 40;
    const Shape shape{2048, 4096};
    const std::size_t count = shape.rows * shape.cols;
    const auto alpha = random_floats(kBases, 9);
    std::vector<float> wide(count);
    const nola::Matrix matrix{kind, kSeed, 5, kBases, shape, Window::whole(shape)};
    nola::expand(matrix, alpha.data(), wide.data());
    const Device<float> coefficients(alpha);
    const Device<float> out(std::vector<float>(count, -1.0F));
    const auto plan = nola::cuda::plan_expand({{matrix, coefficients.data(), out.data()}});
    check(nola::cuda::expand(kind, kSeed, ElementType::kFloat32, plan.jobs[0], nullptr), "expand");
    check(cudaDeviceSynchronize(), "expand");
    expect(same_bits(out.values(), wide), "expand, large");
    for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
        std::vector<std::uint16_t> expected(count);
        const float unit = 1.0F;
        expect(nola::merge(expected.data(), type, 1, count, {&unit, wide.data(), 1, 1.0F}),
               "rounding on the CPU");
        const Device<std::uint16_t> narrow(std::vector<std::uint16_t>(count, 0xFFFFU));
        const auto job =
            nola::cuda::plan_expand({{matrix, coefficients.data(), narrow.data()}}).jobs[0];
        check(nola::cuda::expand(kind, kSeed, type, job, nullptr), "expand");
        check(cudaDeviceSynchronize(), "expand");
        expect(same_bits(narrow.values(), expected), "expand to two bytes");
    }
}

// Gradients of two bytes against the same in four.
void check_narrow_project(Basis kind) {
    constexpr std::size_t kBases = 70;
    const Shape shape{37, 300};
    const std::size_t count = shape.rows * shape.cols;
    const auto values = random_floats(count, 4);
    const nola::Matrix matrix{kind, kSeed, 5, kBases, shape, Window::whole(shape)};
    const Device<double> workspace(
        std::vector<double>(nola::cuda::project_workspace(matrix) / sizeof(double), 1e300));
    const auto projected = [&](ElementType type, const void* grad) {
        const Device<float> out(std::vector<float>(kBases, -1.0F));
        const auto plan = nola::cuda::plan_project({{matrix, grad, out.data()}});
        check(nola::cuda::project(kind, kSeed, type, plan.jobs[0], workspace.data(), nullptr),
              "project");
        check(cudaDeviceSynchronize(), "project");
        return out.values();
    };
    for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
        std::vector<std::uint16_t> narrow(count);
        const float unit = 1.0F;
        expect(nola::merge(narrow.data(), type, 1, count, {&unit, values.data(), 1, 1.0F}),
               "rounding on the CPU");
        std::vector<float> wide(count);
        for (std::size_t e = 0; e < count; ++e) {
            const std::uint32_t bits = std::uint32_t{narrow[e]} << 16;
            if (type == ElementType::kBFloat16) {
                std::memcpy(&wide[e], &bits, sizeof bits);
            } else {
                wide[e] = __half2float(__ushort_as_half(narrow[e]));
            }
        }
        const Device<std::uint16_t> narrow_grad(narrow);
        const Device<float> wide_grad(wide);
        expect(same_bits(projected(type, narrow_grad.data()),
                         projected(ElementType::kFloat32, wide_grad.data())),
               "project of two bytes");
    }
}

void check_project(Basis kind) {
    const std::vector<Case> all = cases();
    std::vector<Device<float>> grads;
    std::vector<Device<float>> single;
    std::vector<Device<float>> grouped;
    std::vector<nola::cuda::ProjectTask> tasks;
    std::vector<std::vector<float>> expected;
    std::vector<double> norms;
    for (const Case& one : all) {
        const auto grad = random_floats(one.window.rows() * one.window.cols(), 3);
        double square = 0.0;
        for (const float g : grad) {
            square += static_cast<double>(g) * static_cast<double>(g);
        }
        norms.push_back(std::sqrt(square / static_cast<double>(one.k)));
        const std::vector<float> none(one.k, -1.0F);
        expected.push_back(none);
        const nola::Matrix matrix{kind, kSeed, one.k, one.k, one.shape, one.window};
        nola::project(matrix, grad.data(), expected.back().data());
        grads.emplace_back(grad);
        single.emplace_back(none);
        grouped.emplace_back(none);
        const auto plan =
            nola::cuda::plan_project({{matrix, grads.back().data(), single.back().data()}});
        const Device<double> workspace(std::vector<double>(plan.workspace / sizeof(double), 1e300));
        check(nola::cuda::project(kind, kSeed, ElementType::kFloat32, plan.jobs[0],
                                  workspace.data(), nullptr),
              "project");
        check(cudaDeviceSynchronize(), "project");
        tasks.push_back({matrix, grads.back().data(), grouped.back().data()});
    }
    const auto plan = nola::cuda::plan_project(tasks);
    const Device<nola::cuda::ProjectJob> table(plan.jobs);
    const Device<double> workspace(std::vector<double>(plan.workspace / sizeof(double), 1e300));
    check(nola::cuda::project(kind, kSeed, ElementType::kFloat32, group_of(plan, table),
                              workspace.data(), nullptr),
          "project group");
    check(cudaDeviceSynchronize(), "project");
    for (std::size_t i = 0; i < all.size(); ++i) {
        const std::string name = "project, case " + std::to_string(i);
        const auto got = single[i].values();
        expect(same_bits(got, grouped[i].values()), name + " of a group");
        for (std::size_t j = 0; j < got.size(); ++j) {
            // The CPU's own rounding is most of this.
            const double gap =
                std::abs(static_cast<double>(got[j]) - static_cast<double>(expected[i][j]));
            expect(gap <= 1e-5 * norms[i] + 1e-30, name + ", basis " + std::to_string(j));
        }
    }
}

template <class T>
void check_merge(ElementType type) {
    struct Sizes {
        std::size_t rows, cols, rank, skew;
    };
    for (const Sizes& s : {Sizes{1, 1, 0, 0}, Sizes{7, 65, 5, 0}, Sizes{64, 128, 16, 0},
                           Sizes{130, 260, 17, 0}, Sizes{70, 131, 40, 3}, Sizes{64, 128, 16, 1}}) {
        for (const float scale : {1.0F, 1e-38F}) {
            const auto b = random_floats(s.rows * s.rank, 1, scale);
            const auto a = random_floats(s.rank * s.cols, 2);
            const std::size_t count = s.skew + s.rows * s.cols;
            const auto values = random_floats(count, 5, scale);
            std::vector<T> base(count);
            const float unit = 1.0F;
            expect(nola::merge(base.data(), type, 1, count, {&unit, values.data(), 1, 1.0F}),
                   "making a base");
            std::vector<T> expected = base;
            expect(nola::merge(expected.data() + s.skew, type, s.rows, s.cols,
                               {b.data(), a.data(), s.rank, 0.7F}),
                   "merging on the CPU");
            const Device<float> device_b(b);
            const Device<float> device_a(a);
            const Device<T> weight(base);
            const Device<int> flag(std::vector<int>(1, 0));
            const auto plan = nola::cuda::plan_merge(
                type, {{weight.data() + s.skew, weight.data() + s.skew, s.rows, s.cols, s.cols,
                        device_b.data(), device_a.data(), s.cols, s.rank, 0.7F}});
            check(nola::cuda::merge(type, plan.jobs[0], flag.data(), nullptr), "merge");
            check(cudaDeviceSynchronize(), "merge");
            const std::string name = "merge " + std::to_string(s.rows) + " x " +
                                     std::to_string(s.cols) + ", rank " + std::to_string(s.rank);
            expect(same_bits(weight.values(), expected), name);
            expect(flag.values()[0] == 0, name + ": flag");
            const Device<T> again(base);
            const auto group = nola::cuda::plan_merge(
                type, {{again.data() + s.skew, again.data() + s.skew, s.rows, s.cols, s.cols,
                        device_b.data(), device_a.data(), s.cols, s.rank, 0.7F}});
            const Device<nola::cuda::MergeJob> table(group.jobs);
            check(nola::cuda::merge(type, group_of(group, table), flag.data(), nullptr), "merge");
            check(cudaDeviceSynchronize(), "merge");
            expect(same_bits(again.values(), expected), name + " of a group");
        }
    }
}

}  // namespace

int main() {
    for (const Basis kind : {Basis::kRademacher, Basis::kUniform}) {
        check_expand(kind);
        check_large_expand(kind);
        check_project(kind);
        check_narrow_project(kind);
    }
    check_merge<float>(ElementType::kFloat32);
    check_merge<std::uint16_t>(ElementType::kFloat16);
    check_merge<std::uint16_t>(ElementType::kBFloat16);
    std::printf(failures == 0 ? "all kernels have the CPU's bits\n" : "%d failures\n", failures);
    return failures == 0 ? 0 : 1;
}
