#include "signature.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "failure.h"

namespace nola::files {

namespace {

constexpr std::size_t kBegin = 64;
constexpr std::string_view kLfs = "version https://git-lfs.github.com/spec/";

}  // namespace

std::string beginning_of(const Input& input) {
    return input.read_text(0,
                           static_cast<std::size_t>(std::min<std::uint64_t>(kBegin, input.size())));
}

void refuse_lfs_pointer(std::string_view begin, const Input& input) {
    if (begin.substr(0, kLfs.size()) == kLfs) {
        throw Failure(input.name(), "",
                      "is a Git LFS pointer, not the file itself; run git lfs pull in its "
                      "repository");
    }
}

bool is_gguf(const std::string& path) {
    // Never waits for the other end of a pipe; whether it is one, the readers say.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char begin[kGgufMagic.size()] = {};
    const bool found = fd >= 0 && ::pread(fd, begin, sizeof begin, 0) == sizeof begin &&
                       std::string_view(begin, sizeof begin) == kGgufMagic;
    if (fd >= 0) {
        ::close(fd);
    }
    return found;
}

}  // namespace nola::files
