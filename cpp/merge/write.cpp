#include "write.h"

#include <system_error>
#include <utility>

#include "earlier_output.h"
#include "files/content_hash.h"
#include "files/copying.h"
#include "files/output.h"
#include "files/paths.h"
#include "files/stop.h"
#include "output_plan.h"
#include "weights.h"

namespace nola::merging {

namespace {

using files::Checkpoint;
using files::Output;

void write_shards(const Plan& plan, int num_threads, Output& output) {
    const Checkpoint& base = plan.base();
    for (std::size_t shard = 0; shard < base.shards().size(); ++shard) {
        const std::string name =
            base.is_folder() ? files::name_of(base.input(shard).name()) : std::string();
        output.make(name, [&](int fd) { write_weights(plan, shard, fd, num_threads); });
    }
}

// What stands beside the weights.
void write_companions(Checkpoint& base, Output& output) {
    for (const std::string& path : base.companions().carried) {
        files::check_stopped();
        const files::FileInput source(files::inside(base.path(), path).c_str());
        output.make(path, [&](int fd) { files::copy_range(source, 0, fd, 0, source.size()); });
    }
    if (!base.index_name().empty()) {
        output.write(base.index_name(), base.index_text());
    }
}

Output::Plan plan_of(Checkpoint& base, const Plan& plan, const WriteOptions& options) {
    Output::Plan output = output_plan(options.output, base.path(), plan.adapters(), options.force);
    output.is_folder = base.is_folder();
    output.bytes = base.bytes();
    output.obstacle = [&base](const std::string& path) { return obstacle(base, path); };
    return output;
}

}  // namespace

std::string write_result(Checkpoint& base, const Plan& plan, const WriteOptions& options) {
    base.companions();  // before anything is written: they may be refused
    Output output(plan_of(base, plan, options));
    try {
        write_shards(plan, options.num_threads, output);
        write_companions(base, output);
    } catch (const std::system_error& error) {
        files::refuse_output(output.target(), error.code().value());
    }
    base.check_unchanged();
    std::string name =
        check_result(options.expected, output.path(), output.target(), options.num_threads);
    files::check_stopped();
    output.commit();
    return name;
}

}  // namespace nola::merging
