// Where stored bytes are read from: a file, or memory.
#pragma once

#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nola::files {

// What tells a file, and that it is unchanged: device, inode, size, and seconds and nanoseconds of
// the last change.
using Identity = std::array<std::uint64_t, 5>;
Identity identity_of(const struct stat& status);

class Input {
public:
    virtual ~Input() = default;
    Input(const Input&) = delete;
    Input& operator=(const Input&) = delete;

    // For errors.
    const std::string& name() const { return name_; }
    std::uint64_t size() const { return size_; }

    // Reads bytes that are all within the size. Throws Failure if they cannot be.
    virtual void read(std::uint64_t offset, void* to, std::size_t count) const = 0;

    // Throws Failure if what was read may not have been one state of the file.
    virtual void check_unchanged() const = 0;

    std::string read_text(std::uint64_t offset, std::size_t count) const;

protected:
    explicit Input(std::string_view name) : name_(name) {}
    void set_size(std::uint64_t size) { size_ = size; }

private:
    std::string name_;
    std::uint64_t size_ = 0;
};

// A regular file, opened read-only. Read with pread, so that a file which is cut off meanwhile is
// an error and no signal. Throws Failure if it cannot be opened or is no regular file.
class FileInput final : public Input {
public:
    explicit FileInput(const char* path);
    ~FileInput() override;

    void read(std::uint64_t offset, void* to, std::size_t count) const override;
    // Of the path too, which may be another file's by now.
    void check_unchanged() const override;
    int fd() const { return fd_; }

private:
    int fd_ = -1;
    Identity opened_{};
};

// Bytes that the caller keeps.
class MemoryInput final : public Input {
public:
    MemoryInput(std::string_view name, const void* bytes, std::size_t size);

    void read(std::uint64_t offset, void* to, std::size_t count) const override;
    void check_unchanged() const override {}

private:
    const unsigned char* bytes_;
};

}  // namespace nola::files
