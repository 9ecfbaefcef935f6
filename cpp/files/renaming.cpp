#include "renaming.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include "failure.h"
#include "paths.h"

namespace nola::files {

namespace {

constexpr unsigned kNoReplace = 1;
constexpr unsigned kExchange = 2;
// EXDEV is what overlayfs says of folders of its lower layers. A plain call says what is wrong
// where it is something else.
constexpr int kUnsupported[] = {ENOSYS, EINVAL, ENOTSUP, EOPNOTSUPP, EPERM, EXDEV, EMLINK};
constexpr int kTaken[] = {EEXIST, ENOTEMPTY, ENOTDIR, EISDIR};

template <class Numbers>
bool is_among(int number, const Numbers& numbers) {
    return std::find(std::begin(numbers), std::end(numbers), number) != std::end(numbers);
}

// Zero, or what went wrong.
int rename_flagged(const std::string& source, const std::string& target, unsigned flags) {
#if defined(__GLIBC__)
    const int result = ::renameat2(AT_FDCWD, source.c_str(), AT_FDCWD, target.c_str(), flags);
#else
    const long result =
        ::syscall(SYS_renameat2, AT_FDCWD, source.c_str(), AT_FDCWD, target.c_str(), flags);
#endif
    return result == 0 ? 0 : errno;
}

int rename_by_link(const std::string& source, const std::string& target) {
    if (::link(source.c_str(), target.c_str()) != 0) {
        return errno;
    }
    return ::unlink(source.c_str()) == 0 ? 0 : errno;
}

int rename_after_a_look(const std::string& source, const std::string& target) {
    if (link_status_of(target)) {
        return EEXIST;
    }
    // Which itself refuses to replace a folder that is not empty.
    return std::rename(source.c_str(), target.c_str()) == 0 ? 0 : errno;
}

}  // namespace

void throw_errno() {
    throw std::system_error(errno, std::generic_category());
}

bool rename_new(const std::string& source, const std::string& target) {
    int error = rename_flagged(source, target, kNoReplace);
    if (is_among(error, kUnsupported) && !is_folder(source)) {
        error = rename_by_link(source, target);
    }
    if (is_among(error, kUnsupported)) {
        error = rename_after_a_look(source, target);
    }
    if (error != 0 && !is_among(error, kTaken)) {
        throw std::system_error(error, std::generic_category());
    }
    return error == 0;
}

bool exchange_names(const std::string& one, const std::string& other) {
    const int error = rename_flagged(one, other, kExchange);
    if (error != 0 && !is_among(error, kUnsupported)) {
        throw std::system_error(error, std::generic_category());
    }
    return error == 0;
}

void rename_over(const std::string& source, const std::string& target) {
    if (std::rename(source.c_str(), target.c_str()) != 0) {
        throw_errno();
    }
}

void remove_whole(const std::string& path) {
    if (!is_folder(path) || is_link(path)) {
        ::unlink(path.c_str());
        return;
    }
    try {
        for (const std::string& name : names_in(path)) {
            remove_whole(join(path, name));
        }
    } catch (const Failure&) {  // it cannot be read
    }
    ::rmdir(path.c_str());
}

}  // namespace nola::files
