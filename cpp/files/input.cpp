#include "input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "failure.h"

namespace nola::files {

namespace {

[[noreturn]] void refuse(const std::string& name, const char* done) {
    throw Failure(name, "", std::string("cannot be ") + done + ": " + std::strerror(errno));
}

}  // namespace

Identity identity_of(const struct stat& status) {
    return {static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
            static_cast<std::uint64_t>(status.st_size),
            static_cast<std::uint64_t>(status.st_mtim.tv_sec),
            static_cast<std::uint64_t>(status.st_mtim.tv_nsec)};
}

std::string Input::read_text(std::uint64_t offset, std::size_t count) const {
    std::string text(count, '\0');
    read(offset, text.data(), count);
    return text;
}

FileInput::FileInput(const char* path) : Input(path) {
    // Never waits for the other end of a pipe.
    fd_ = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) {
        refuse(name(), "opened");
    }
    struct stat status{};
    const bool is_regular = ::fstat(fd_, &status) == 0 && S_ISREG(status.st_mode);
    if (!is_regular) {
        ::close(fd_);
        throw Failure(name(), "", "is not a regular file");
    }
    set_size(static_cast<std::uint64_t>(status.st_size));
    opened_ = identity_of(status);
}

FileInput::~FileInput() {
    ::close(fd_);
}

void FileInput::read(std::uint64_t offset, void* to, std::size_t count) const {
    auto* at = static_cast<char*>(to);
    while (count > 0) {
        const ssize_t done = ::pread(fd_, at, count, static_cast<off_t>(offset));
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done < 0) {
            refuse(name(), "read");
        }
        if (done == 0) {
            throw Changed(name(),
                          "became shorter while it was read; run again when nothing writes to it");
        }
        at += done;
        offset += static_cast<std::uint64_t>(done);
        count -= static_cast<std::size_t>(done);
    }
}

void FileInput::check_unchanged() const {
    struct stat open{};
    struct stat named{};
    if (::fstat(fd_, &open) != 0 || ::stat(name().c_str(), &named) != 0) {
        throw Changed(name(), std::string("disappeared in the meantime: ") + std::strerror(errno));
    }
    if (identity_of(open) != opened_ || identity_of(named) != opened_) {
        throw Changed(name(), "changed while it was read; run again when nothing writes to it");
    }
}

MemoryInput::MemoryInput(std::string_view name, const void* bytes, std::size_t size)
    : Input(name), bytes_(static_cast<const unsigned char*>(bytes)) {
    set_size(size);
}

void MemoryInput::read(std::uint64_t offset, void* to, std::size_t count) const {
    if (count > 0) {
        std::memcpy(to, bytes_ + offset, count);
    }
}

}  // namespace nola::files
