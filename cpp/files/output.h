// Outputs that are absent or complete at every instant.
//
// A write checks everything; removes the temporaries of dead writers; makes a temporary folder
// beside the target, and the target's parents if they are missing; writes; finds every file again
// as it was written and forces it to disk, then the folders; moves the result into place with one
// rename that never overwrites; looks at it once more; forces the parent's entries to disk.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace nola::files {

class Output {
public:
    // Says what of a path keeps it from being replaced; empty of one that may be.
    using Obstacle = std::function<std::string(const std::string& path)>;

    struct Plan {
        std::string target;
        std::vector<std::string> inputs;  // that the target may not be, contain or lie in
        bool force = false;               // replace an existing target, if the obstacle allows it
        bool is_folder = false;
        std::uint64_t bytes = 0;  // refused at once if the disk has less
        Obstacle obstacle;
    };

    // Throws OutputFailure if the target cannot be written.
    explicit Output(Plan plan);
    // Removes whatever is not in place.
    ~Output();
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;

    // From the root.
    const std::string& target() const { return plan_.target; }
    // Where the new output is until it is in place.
    const std::string& path() const { return path_; }

    // Makes a new file, with the folders that it is in, which `fill` writes to; an empty name is
    // that of an output that is a file.
    void make(const std::string& name, const std::function<void(int fd)>& fill);
    // Makes a file with this content.
    void write(const std::string& name, std::string_view content);

    // Puts the output in place.
    void commit();

private:
    int create(const std::string& name);
    void finish(const std::string& name, int fd);
    void check_target() const;
    void check_apart() const;
    void check_replaceable() const;
    void check_space() const;
    std::string in_the_way(const std::string& path) const;
    void make_temporary();
    void make_parents();
    void discard() noexcept;
    void sync() const;
    void replace();
    void check_replaced(const std::string& path, const std::vector<std::string>& names) const;
    bool is_as_written(const std::string& root) const;
    void check_published();
    void take_back();
    std::string kept(const std::string& replaced) const;
    [[noreturn]] void refuse_lost(const std::string& name) const;

    Plan plan_;
    std::string temporary_;
    std::string path_;
    std::vector<std::string> made_parents_;
    std::map<std::string, struct stat> written_;
    bool keeps_inodes_ = true;
    bool is_replaced_ = false;
};

// The refusal of a target that the system does not let us write.
[[noreturn]] void refuse_output(const std::string& target, int error);

// Writes all of it at an offset. Throws std::system_error.
void write_all(int fd, const void* bytes, std::size_t count, std::uint64_t offset);

// "is a device" and the like of what is neither file nor folder; empty of anything else.
std::string special_file(const std::string& path);

}  // namespace nola::files
