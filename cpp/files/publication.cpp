// How an output gets to disk and into its place.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "failure.h"
#include "output.h"
#include "paths.h"
#include "printable.h"
#include "renaming.h"
#include "temporary.h"

namespace nola::files {

namespace {

// What some file systems say of a folder's fsync; they order its entries themselves, or never.
constexpr int kNoFolderSync[] = {EINVAL, EBADF, ENOTSUP, EOPNOTSUPP, EACCES};
// FAT keeps times to two seconds.
constexpr std::int64_t kTimeGrain = 2;

// Forces a folder's entries to disk, where its file system can be told to.
void sync_folder(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES) {  // a folder to drop files in, which may not be read
        return;
    }
    if (fd < 0) {
        throw_errno();
    }
    const int error = ::fsync(fd) == 0 ? 0 : errno;
    ::close(fd);
    if (error != 0 && std::find(std::begin(kNoFolderSync), std::end(kNoFolderSync), error) ==
                          std::end(kNoFolderSync)) {
        throw std::system_error(error, std::generic_category());
    }
}

// The folders from the leaves up.
void sync_folders(const std::string& folder) {
    for (const std::string& name : names_in(folder)) {
        const std::string path = join(folder, name);
        if (is_folder(path) && !is_link(path)) {
            sync_folders(path);
        }
    }
    sync_folder(folder);
}

bool is_same(const struct stat& now, const struct stat& then, bool by_inode) {
    if (by_inode) {
        return now.st_size == then.st_size && now.st_ino == then.st_ino;
    }
    const std::int64_t apart = now.st_mtime - then.st_mtime;
    return now.st_size == then.st_size && apart <= kTimeGrain && -apart <= kTimeGrain;
}

void sync_file(int fd) {
    while (::fsync(fd) != 0) {
        if (errno != EINTR) {
            throw_errno();
        }
    }
}

}  // namespace

// All to disk, each file found as it was when its last byte had been written: what tidies up may
// have removed it under our hands.
void Output::sync() const {
    for (const auto& [name, then] : written_) {
        const std::string path = name.empty() ? path_ : join(path_, name);
        const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        struct stat now{};
        if (fd < 0 || ::fstat(fd, &now) != 0 || !is_same(now, then, keeps_inodes_)) {
            if (fd >= 0) {
                ::close(fd);
            }
            refuse_lost(name);
        }
        try {
            sync_file(fd);
        } catch (...) {
            ::close(fd);
            throw;
        }
        ::close(fd);
    }
    if (plan_.is_folder) {
        sync_folders(path_);
    }
}

void Output::commit() {
    try {
        sync();
        if (plan_.force && link_status_of(plan_.target)) {
            replace();
        } else if (!rename_new(path_, plan_.target)) {
            throw OutputFailure(plan_.target,
                                "appeared while the output was being written; it was left alone");
        }
    } catch (const std::system_error& error) {
        refuse_output(plan_.target, error.code().value());
    }
    check_published();
    try {
        sync_folder(parent_of(plan_.target));
        for (const std::string& place : made_parents_) {
            sync_folder(parent_of(place));
        }
    } catch (const std::system_error& error) {
        throw OutputFailure(plan_.target,
                            std::string("is complete, but its folder could not be forced to "
                                        "disk: ") +
                                std::strerror(error.code().value()) +
                                "; a power failure might undo it");
    }
    check_published();
    made_parents_.clear();
}

// Puts the output in another's place, and looks at what that was: it may have changed. The other
// one is then part of the temporary, and removed with it.
void Output::replace() {
    const std::string& target = plan_.target;
    const auto names = plan_.is_folder ? names_below(target) : std::vector<std::string>();
    check_replaced(target, {});
    note_exchange(temporary_);
    if (exchange_names(path_, target)) {
        try {
            check_replaced(path_, names);
        } catch (...) {
            exchange_names(path_, target);
            throw;
        }
        is_replaced_ = true;
        return;
    }
    // No one step does it here; the output is absent between the two.
    const std::string replaced = join(temporary_, kReplaced);
    rename_over(target, replaced);
    try {
        check_replaced(replaced, names);
    } catch (const OutputFailure&) {
        if (!rename_new(replaced, target)) {
            throw OutputFailure(target, kept(replaced));
        }
        throw;
    }
    if (!rename_new(path_, target)) {
        throw OutputFailure(target, kept(replaced));
    }
}

std::string Output::kept(const std::string& replaced) const {
    return "appeared while another was being replaced, which is " +
           printable(name_of(keep(replaced, plan_.target))) + " now; both were left alone";
}

// Refuses to lose what stands at a path, unless all of it was there before the work.
void Output::check_replaced(const std::string& path, const std::vector<std::string>& names) const {
    const std::string found = link_status_of(path) ? in_the_way(path) : "";
    if (found.empty()) {
        return;
    }
    if (is_folder(path) && !names.empty()) {
        const auto now = names_below(path);
        const bool has_come = std::any_of(now.begin(), now.end(), [&](const std::string& name) {
            return std::find(names.begin(), names.end(), name) == names.end();
        });
        if (!has_come) {
            return;  // some of it is gone since, and nothing has come
        }
    }
    throw OutputFailure(plan_.target, "changed while the output was being written: it " + found +
                                          "; it was left alone");
}

bool Output::is_as_written(const std::string& root) const {
    return std::all_of(written_.begin(), written_.end(), [&](const auto& file) {
        const auto now = link_status_of(file.first.empty() ? root : join(root, file.first));
        return now && is_same(*now, file.second, keeps_inodes_);
    });
}

// Looks at the output in its place; what tidies up may have begun before it was moved.
void Output::check_published() {
    if (!is_as_written(plan_.target)) {
        take_back();
        refuse_lost("");
    }
}

// Undoes the last step; what was replaced is back then, or put back with the temporary.
void Output::take_back() {
    const std::string& target = plan_.target;
    if (!link_status_of(target)) {
        return;
    }
    const auto names = is_folder(target) ? names_below(target) : std::vector<std::string>{""};
    for (const std::string& name : names) {
        const auto now = link_status_of(name.empty() ? target : join(target, name));
        const auto then = written_.find(name);
        if (!now || then == written_.end() || !is_same(*now, then->second, keeps_inodes_)) {
            return;  // somebody has put something there since
        }
    }
    if (link_status_of(path_) && exchange_names(path_, target)) {
        return;
    }
    const std::string aside = temporary_path(target);  // that of the output may be gone
    if (::mkdir(aside.c_str(), 0700) == 0) {
        rename_over(target, join(aside, kNew));
        remove_whole(aside);
    }
}

void Output::refuse_lost(const std::string& name) const {
    throw OutputFailure(name.empty() ? path_ : join(path_, name),
                        "was written, but is now gone or another file, so nothing was published; "
                        "run again, and keep whatever cleans up " +
                            printable(parent_of(temporary_)) + " away from .nola-edge-*");
}

}  // namespace nola::files
