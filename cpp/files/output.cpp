#include "output.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sstream>
#include <system_error>
#include <utility>

#include "failure.h"
#include "paths.h"
#include "printable.h"
#include "renaming.h"
#include "temporary.h"

namespace nola::files {

namespace {

// These make up inodes as they go: a file's may change once the kernel has forgotten it.
constexpr const char* kMadeUpInodes[] = {"fuse", "vfat", "msdos", "exfat", "cifs", "smb", "9p"};
// The type of the file system that a path lies on; empty if it is not known.
std::string file_system(const std::string& path) {
    const auto status = link_status_of(path);
    const int fd = ::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    std::string text;
    char part[4096];
    for (ssize_t count = 1; fd >= 0 && count > 0;) {
        count = ::read(fd, part, sizeof part);
        text.append(part, count > 0 ? static_cast<std::size_t>(count) : 0);
    }
    if (fd >= 0) {
        ::close(fd);
    }
    const std::string wanted =
        status ? std::to_string(major(status->st_dev)) + ":" + std::to_string(minor(status->st_dev))
               : "";
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream fields(line);
        std::string number;
        std::string parent;
        std::string found;
        fields >> number >> parent >> found;
        const std::size_t dash = line.find(" - ");
        if (found == wanted && dash != line.npos) {
            return line.substr(dash + 3, line.find(' ', dash + 3) - dash - 3);
        }
    }
    return "";
}

bool keeps_inodes(const std::string& path) {
    const std::string type = file_system(path);
    return std::none_of(std::begin(kMadeUpInodes), std::end(kMadeUpInodes),
                        [&](const char* begin) { return type.rfind(begin, 0) == 0; });
}

// A folder, or the nearest one on the way to it that is there.
std::string nearest_folder(const std::string& target, const std::string& folder) {
    for (std::string place = folder;; place = parent_of(place)) {
        const auto status = link_status_of(place);
        if (!status) {
            if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) {
                throw_errno();
            }
            continue;
        }
        if (is_folder(place)) {
            return place;
        }
        const char* what = S_ISLNK(status->st_mode) ? "a broken link" : "not a folder";
        throw OutputFailure(folder, printable(place) + " is " + what + "; choose another name");
    }
    throw OutputFailure(target, "is not a name for an output");
}

bool is_nothing_yet(const std::string& path) {
    const auto status = status_of(path);
    return status && (S_ISDIR(status->st_mode) ? names_in(path).empty()
                                               : S_ISREG(status->st_mode) && status->st_size == 0);
}

bool holds_current_folder(const std::string& place) {
    return is_within(resolved("."), place);
}

bool is_mount(const std::string& path) {
    const auto own = link_status_of(path);
    const auto above = link_status_of(parent_of(path));
    return own && above && !S_ISLNK(own->st_mode) &&
           (own->st_dev != above->st_dev || own->st_ino == above->st_ino);
}

}  // namespace

void refuse_output(const std::string& target, int error) {
    if (error == ENOSPC) {
        throw OutputFailure(target,
                            "cannot be written: no space left on the disk; nothing was kept");
    }
    throw OutputFailure(target, std::string("cannot be written: ") + std::strerror(error));
}

void write_all(int fd, const void* bytes, std::size_t count, std::uint64_t offset) {
    const auto* at = static_cast<const char*>(bytes);
    while (count > 0) {
        const ssize_t done = ::pwrite(fd, at, count, static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done < 0) {
            throw_errno();
        }
        at += done;
        offset += static_cast<std::uint64_t>(done);
        count -= static_cast<std::size_t>(done);
    }
}

std::string special_file(const std::string& path) {
    const auto status = status_of(path);
    if (!status || S_ISREG(status->st_mode) || S_ISDIR(status->st_mode)) {
        return "";
    }
    return S_ISCHR(status->st_mode) || S_ISBLK(status->st_mode) ? "is a device"
           : S_ISFIFO(status->st_mode)                          ? "is a pipe"
           : S_ISSOCK(status->st_mode)                          ? "is a socket"
                                                                : "is not a regular file";
}

Output::Output(Plan plan) : plan_(std::move(plan)) {
    plan_.target = absolute(plan_.target);
    try {
        check_target();
        try {
            sweep(plan_.target, [&](const std::string& path) { return in_the_way(path).empty(); });
        } catch (const Failure&) {  // a folder to drop files in may not be listed
        }
        check_target();  // a sweep may have put back what an earlier writer had taken away
        check_space();
        make_temporary();
    } catch (const std::system_error& error) {
        discard();
        refuse_output(plan_.target, error.code().value());
    } catch (...) {
        discard();
        throw;
    }
}

Output::~Output() {
    discard();
}

void Output::check_target() const {
    const std::string& target = plan_.target;
    if (name_of(target).empty()) {
        throw OutputFailure(target, "is not a name for an output");
    }
    nearest_folder(target, parent_of(target));
    check_apart();  // first: another name, or --force, would be the wrong advice
    if (!link_status_of(target)) {
        return;
    }
    check_replaceable();
    if (!plan_.force) {
        throw OutputFailure(target, "exists already; choose another name or pass --force");
    }
}

void Output::check_apart() const {
    const std::string& target = plan_.target;
    const std::string place = join(resolved(parent_of(target)), name_of(target));
    for (const std::string& input : plan_.inputs) {
        const std::string source = resolved(input);
        if (place == source || resolved(place) == source) {
            throw OutputFailure(target, "is an input; inputs are never changed");
        }
        if (is_within(place, source)) {
            throw OutputFailure(target, "lies inside the input " + printable(input));
        }
        if (is_within(source, place)) {
            throw OutputFailure(target, "contains the input " + printable(input));
        }
    }
}

void Output::check_replaceable() const {
    const std::string& target = plan_.target;
    if (const std::string special = special_file(target); !special.empty()) {
        throw OutputFailure(target, special + ", and never replaced; choose another name");
    }
    if (is_link(target)) {
        throw OutputFailure(target, "is a symbolic link, and never replaced; choose another name");
    }
    if (is_folder(target) != plan_.is_folder) {
        throw OutputFailure(target, std::string("is a ") + (plan_.is_folder ? "file" : "folder") +
                                        " already, but the output is not; choose another name, or "
                                        "remove it first");
    }
    if (holds_current_folder(resolved(target))) {
        throw OutputFailure(target, "is or holds the current folder; choose another");
    }
    if (is_mount(target)) {
        throw OutputFailure(target,
                            "is a mount point, which cannot be replaced; choose a name inside it");
    }
    if (const std::string found = in_the_way(target); !found.empty()) {
        throw OutputFailure(target, (plan_.force ? found + ", so --force does not replace it"
                                                 : "exists already, and " + found) +
                                        "; choose another name, or remove it yourself");
    }
}

void Output::check_space() const {
    struct statvfs disk{};
    if (::statvfs(nearest_folder(plan_.target, parent_of(plan_.target)).c_str(), &disk) != 0) {
        throw_errno();
    }
    const std::uint64_t free = std::uint64_t{disk.f_bavail} * disk.f_frsize;
    if (plan_.bytes > free) {
        throw OutputFailure(plan_.target, "needs " + std::to_string(plan_.bytes) +
                                              " bytes, but the disk has " + std::to_string(free) +
                                              " free");
    }
}

// What of a path is neither what this writes nor nothing yet.
std::string Output::in_the_way(const std::string& path) const {
    if (is_link(path) || is_folder(path) != plan_.is_folder) {
        return "is something else";
    }
    return is_nothing_yet(path) ? "" : plan_.obstacle(path);
}

void Output::make_parents() {
    std::vector<std::string> missing;
    for (std::string place = parent_of(plan_.target); !is_folder(place); place = parent_of(place)) {
        missing.push_back(place);
    }
    std::reverse(missing.begin(), missing.end());
    for (const std::string& place : missing) {
        if (::mkdir(place.c_str(), 0777) == 0) {
            made_parents_.push_back(place);
        } else if (errno != EEXIST) {
            throw_errno();
        }
    }
}

void Output::make_temporary() {
    make_parents();
    const std::string temporary = temporary_path(plan_.target);
    if (::mkdir(temporary.c_str(), 0700) != 0) {
        throw_errno();
    }
    temporary_ = temporary;
    // Something inside the temporary is renamed into place, never the private folder itself.
    path_ = join(temporary_, kNew);
    if (plan_.is_folder && ::mkdir(path_.c_str(), 0777) != 0) {
        throw_errno();
    }
    keeps_inodes_ = keeps_inodes(temporary_);
}

void Output::discard() noexcept {
    try {
        if (!temporary_.empty() && link_status_of(temporary_)) {
            put_back(temporary_, plan_.target, [&](const std::string& path) {
                return is_replaced_ || in_the_way(path).empty();
            });
            remove_whole(temporary_);
        }
    } catch (...) {  // what cannot be put back stays in the temporary, for the next run
    }
    temporary_.clear();
    for (auto place = made_parents_.rbegin(); place != made_parents_.rend(); ++place) {
        ::rmdir(place->c_str());  // unless it holds something by now
    }
    made_parents_.clear();
}

// Returns the descriptor of a new file.
int Output::create(const std::string& name) {
    std::string folder = path_;
    for (std::size_t at = name.find('/'); at != name.npos; at = name.find('/', at + 1)) {
        folder = join(path_, name.substr(0, at));
        if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) {
            throw_errno();
        }
    }
    const std::string path = name.empty() ? path_ : join(path_, name);
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        throw_errno();
    }
    return fd;
}

// Closes a file, and takes note of what has been written.
void Output::finish(const std::string& name, int fd) {
    if (::close(fd) != 0 && errno != EINTR) {
        throw_errno();
    }
    const auto status = link_status_of(name.empty() ? path_ : join(path_, name));
    if (!status) {
        refuse_lost(name);
    }
    written_.emplace(name, *status);
}

void Output::make(const std::string& name, const std::function<void(int fd)>& fill) {
    const int fd = create(name);
    try {
        fill(fd);
    } catch (...) {
        ::close(fd);
        throw;
    }
    finish(name, fd);
}

void Output::write(const std::string& name, std::string_view content) {
    make(name, [&](int fd) { write_all(fd, content.data(), content.size(), 0); });
}

}  // namespace nola::files
