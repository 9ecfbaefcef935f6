#include "write.h"

#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "files/copying.h"
#include "files/output.h"
#include "files/renaming.h"
#include "files/stop.h"
#include "merge/earlier_output.h"
#include "merge/matrix.h"
#include "merge/output_plan.h"

namespace nola::gguf {

namespace {

using files::GgufFile;
using files::TensorInfo;

// Bytes of the output: of the base, and the padding that its last tensor may lack.
std::uint64_t size_of(const GgufFile& base) {
    const auto& tensors = base.tensors();
    const std::uint64_t stop = tensors.empty() ? base.data_start() : tensors.back().stop;
    return files::padded(stop, base.alignment());
}

merging::Tensors tensors_of(const GgufFile& file) {
    merging::Tensors tensors;
    for (const TensorInfo& tensor : file.tensors()) {
        tensors.push_back(&tensor);
    }
    return tensors;
}

// What keeps a path from being replaced: it is no model in GGUF with the tensors of the base.
std::string obstacle(const GgufFile& base, const std::string& path) {
    if (files::gguf_type_at(path) != "model") {
        return "is not a GGUF model";
    }
    const GgufFile found(std::make_shared<files::FileInput>(path.c_str()));
    return merging::other_tensors(tensors_of(base), tensors_of(found));
}

// Fills the output: what is not merged is copied, tensors that follow one another with the padding
// between them.
Survival write_tensors(const files::FileInput& input, const Plan& plan, int fd, int num_threads) {
    const auto& tensors = plan.base().tensors();
    const auto copy = [&](std::uint64_t begin, std::uint64_t end) {
        files::copy_in_pieces(input, begin, fd, begin, end - begin, num_threads);
    };
    copy(0, std::min(plan.base().data_start(), input.size()));
    merging::MatrixWriter writer(fd, num_threads);
    Survival survival;
    for (std::size_t i = 0; i < tensors.size();) {
        const TensorInfo& tensor = tensors[i];
        if (const auto* segments = plan.segments(tensor.name)) {
            const ChangeSums sums = writer.write({&input, &tensor}, *segments, tensor.start);
            if (merging::is_quantized(tensor.type)) {
                survival.emplace_back(tensor.name, sums);
            }
            ++i;
            continue;
        }
        std::size_t last = i;
        while (last + 1 < tensors.size() && plan.segments(tensors[last + 1].name) == nullptr) {
            ++last;
        }
        copy(tensor.start, tensors[last].stop);
        i = last + 1;
    }
    return survival;
}

files::Output::Plan plan_of(const Plan& plan, const WriteOptions& options) {
    files::Output::Plan output = merging::output_plan(options.output, plan.base().input().name(),
                                                      plan.adapters(), options.force);
    output.bytes = size_of(plan.base());
    output.obstacle = [&](const std::string& path) { return obstacle(plan.base(), path); };
    return output;
}

}  // namespace

Written write_result(const files::FileInput& input, const Plan& plan, const WriteOptions& options) {
    Written written;
    written.bytes = size_of(plan.base());
    files::Output output(plan_of(plan, options));
    try {
        output.make("", [&](int fd) {
            if (::ftruncate(fd, static_cast<off_t>(written.bytes)) != 0) {
                files::throw_errno();
            }
            written.survival = write_tensors(input, plan, fd, options.num_threads);
        });
    } catch (const std::system_error& error) {
        files::refuse_output(output.target(), error.code().value());
    }
    input.check_unchanged();
    written.expected_of = merging::check_result(options.expected, output.path(), output.target(),
                                                options.num_threads);
    files::check_stopped();
    output.commit();
    return written;
}

}  // namespace nola::gguf
