#include "nola/merge.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cuda/host_threads.h"
#include "reference.h"

namespace {

using nola::ElementType;
using nola::cuda::MergeTask;

constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kFloat16,
                                  ElementType::kBFloat16};

// Elements of a type with the values of random floats, subnormals among them.
std::vector<unsigned char> random_elements(ElementType type, std::size_t count, float scale) {
    std::vector<unsigned char> bytes(count * nola::element_size(type));
    const std::vector<float> values = nola::test::random_floats(count, 5, scale);
    const float unit = 1.0F;
    REQUIRE(nola::merge(bytes.data(), type, 1, count, {&unit, values.data(), 1, 1.0F}, 1));
    return bytes;
}

struct Sizes {
    std::size_t rows;
    std::size_t cols;
    std::size_t rank;
    std::size_t gap;   // elements between the rows
    std::size_t skew;  // elements before the first
};

constexpr Sizes kSizes[] = {
    {1, 1, 0, 0, 0},       {1, 1, 1, 0, 0},      {7, 65, 5, 0, 0},    {64, 128, 16, 0, 0},
    {130, 260, 16, 0, 0},  {130, 260, 17, 4, 0}, {70, 131, 40, 1, 3}, {64, 128, 16, 0, 1},
    {65, 256, 3, 128, 64}, {0, 5, 3, 0, 0},
};

// One merge on both sides, the base apart from the result or not.
class Case {
public:
    Case(ElementType type, const Sizes& sizes, float scale)
        : type_(type),
          sizes_(sizes),
          b_(nola::test::random_floats(sizes.rows * sizes.rank, 1, scale)),
          a_(nola::test::random_floats(sizes.rank * (sizes.cols + 2), 2)),
          base_(random_elements(type, sizes.skew + sizes.rows * stride() + 8, scale)),
          out_(base_.size(), 0xABU) {}

    MergeTask task(bool in_place) {
        const std::size_t skip = sizes_.skew * nola::element_size(type_);
        if (in_place) {
            out_ = base_;
        }
        return {in_place ? out_.data() + skip : base_.data() + skip,
                out_.data() + skip,
                sizes_.rows,
                sizes_.cols,
                stride(),
                b_.data(),
                a_.data(),
                sizes_.cols + 2,
                sizes_.rank,
                0.7F};
    }

    // The CPU merges one row at a time, each without gaps.
    bool is_right(bool in_place) const {
        std::vector<unsigned char> expected =
            in_place ? base_ : std::vector<unsigned char>(base_.size(), 0xABU);
        std::vector<float> a(sizes_.rank * sizes_.cols);
        for (std::size_t j = 0; j < sizes_.rank; ++j) {
            std::copy_n(a_.data() + j * (sizes_.cols + 2), sizes_.cols, a.data() + j * sizes_.cols);
        }
        const std::size_t size = nola::element_size(type_);
        for (std::size_t m = 0; m < sizes_.rows; ++m) {
            const std::size_t at = (sizes_.skew + m * stride()) * size;
            std::memcpy(&expected[at], &base_[at], sizes_.cols * size);
            REQUIRE(nola::merge(&expected[at], type_, 1, sizes_.cols,
                                {b_.data() + m * sizes_.rank, a.data(), sizes_.rank, 0.7F}, 1));
        }
        return out_ == expected;
    }

private:
    std::size_t stride() const { return sizes_.cols + sizes_.gap; }

    ElementType type_;
    Sizes sizes_;
    std::vector<float> b_;
    std::vector<float> a_;
    std::vector<unsigned char> base_;
    std::vector<unsigned char> out_;
};

// Merges `value` into a zero: whether the flag says that it is not finite.
bool raises_flag(ElementType type, float value) {
    std::uint32_t weight = 0;
    const float unit = 1.0F;
    const auto plan =
        nola::cuda::plan_merge(type, {{&weight, &weight, 1, 1, 1, &unit, &value, 1, 1, 1.0F}});
    int not_finite = 0;
    nola::test::run_merge(type, nola::test::table_of(plan), plan.jobs[0].end, &not_finite);
    return not_finite != 0;
}

}  // namespace

TEST_CASE("cuda merge: the bits of the CPU for sizes, strides, alignments and types") {
    for (const ElementType type : kTypes) {
        for (const float scale : {1.0F, 1e-5F, 1e-38F}) {
            for (const bool in_place : {true, false}) {
                std::vector<Case> all;
                for (const Sizes& sizes : kSizes) {
                    all.emplace_back(type, sizes, scale);
                }
                std::vector<MergeTask> tasks;
                tasks.reserve(all.size());
                for (Case& one : all) {
                    tasks.push_back(one.task(in_place));
                }
                const auto group = nola::cuda::plan_merge(type, tasks);
                int not_finite = 0;
                nola::test::run_merge(type, nola::test::table_of(group), group.jobs.back().end,
                                      &not_finite);
                CHECK(not_finite == 0);
                for (const Case& one : all) {
                    CHECK(one.is_right(in_place));
                }
                for (const Sizes& sizes : kSizes) {
                    Case one(type, sizes, scale);
                    const auto plan = nola::cuda::plan_merge(type, {one.task(in_place)});
                    const nola::cuda::OneJob<nola::cuda::MergeJob> job{plan.jobs[0]};
                    nola::test::run_merge(type, job, job.job.end, &not_finite);
                    CHECK(one.is_right(in_place));
                }
            }
        }
    }
}

TEST_CASE("cuda merge: what is not finite after rounding sets the flag") {
    const float infinity = std::numeric_limits<float>::infinity();
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const ElementType type : kTypes) {
        CHECK_FALSE(raises_flag(type, 65000.0F));
        CHECK_FALSE(raises_flag(type, -1e-30F));
        CHECK(raises_flag(type, infinity));
        CHECK(raises_flag(type, -infinity));
        CHECK(raises_flag(type, nan));
        CHECK(raises_flag(type, -nan));
    }
    CHECK_FALSE(raises_flag(ElementType::kFloat32, std::numeric_limits<float>::max()));
    CHECK_FALSE(raises_flag(ElementType::kFloat16, 65519.996F));
    CHECK(raises_flag(ElementType::kFloat16, -65520.0F));
    CHECK_FALSE(raises_flag(ElementType::kBFloat16, nola::cuda::float_of(0x7F7F7FFFU)));
    CHECK(raises_flag(ElementType::kBFloat16, nola::cuda::float_of(0x7F7F8000U)));
}

TEST_CASE("cuda merge: every finite half and bfloat16 is widened and rounded as on the CPU") {
    for (const ElementType type : {ElementType::kFloat16, ElementType::kBFloat16}) {
        const unsigned infinity = type == ElementType::kFloat16 ? 0x7C00U : 0x7F80U;
        std::vector<std::uint16_t> all;
        for (unsigned bits = 0; bits < 65536; ++bits) {
            if ((bits & 0x7FFFU) < infinity) {
                all.push_back(static_cast<std::uint16_t>(bits));
            }
        }
        // A little less, as much, and a little more than half of a last place.
        for (const float scaling : {0.0F, 0x1p-12F, 0x1p-11F, 0x1.1p-11F, 0x1p-9F, 0x1p-8F}) {
            std::vector<float> wide(all.size());
            for (std::size_t e = 0; e < all.size(); ++e) {
                wide[e] = nola::cuda::load_element(type, all.data(), e);
            }
            auto expected = all;
            auto merged = all;
            const float unit = 1.0F;
            const bool finite = nola::merge(expected.data(), type, 1, all.size(),
                                            {&unit, wide.data(), 1, scaling}, 1);
            const auto plan = nola::cuda::plan_merge(
                type, {{merged.data(), merged.data(), 1, all.size(), all.size(), &unit, wide.data(),
                        all.size(), 1, scaling}});
            int not_finite = 0;
            nola::test::run_merge(type, nola::test::table_of(plan), plan.jobs[0].end, &not_finite);
            CHECK(merged == expected);
            CHECK((not_finite == 0) == finite);
        }
    }
}

TEST_CASE("cuda merge: a plan refuses null pointers and rows that overlap") {
    float weight = 0.0F;
    float factor = 1.0F;
    const MergeTask good{&weight, &weight, 1, 1, 1, &factor, &factor, 1, 1, 1.0F};
    const auto plan = [](const MergeTask& task) {
        return nola::cuda::plan_merge(ElementType::kFloat32, {task});
    };
    CHECK_NOTHROW(plan(good));
    for (const auto& spoil : std::vector<void (*)(MergeTask&)>{
             [](MergeTask& task) { task.base = nullptr; },
             [](MergeTask& task) { task.out = nullptr; },
             [](MergeTask& task) { task.a = nullptr; },
             [](MergeTask& task) { task.b = nullptr; },
             [](MergeTask& task) { task.stride = 0; },
             [](MergeTask& task) { task.a_stride = 0; },
         }) {
        MergeTask bad = good;
        spoil(bad);
        CHECK_THROWS_AS(plan(bad), std::invalid_argument);
    }
}
