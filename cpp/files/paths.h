// Paths as text, and what lies at them. Folders and files are looked at by name here; what is read
// or written is opened once, and then known by its descriptor.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace nola::files {

// A path as Python's pathlib writes it: without "." and what is said twice.
std::string normal(std::string_view path);

std::string join(std::string_view folder, std::string_view name);

// The last part, and what comes before it; "." or "/" where nothing does.
std::string name_of(std::string_view path);
std::string parent_of(std::string_view path);

// From the root, with ".." taken back, whatever links there are.
std::string absolute(std::string_view path);

// With all links followed, as far as there is something.
std::string resolved(std::string_view path);

// Whether a path is a folder or lies in it, by their names alone.
bool is_within(std::string_view path, std::string_view folder);

// What lies at a path, behind links or not; nothing if that cannot be said.
std::optional<struct stat> status_of(const std::string& path);
std::optional<struct stat> link_status_of(const std::string& path);
bool is_folder(const std::string& path);
bool is_file(const std::string& path);
bool is_link(const std::string& path);

// Whether there is something behind links; throws Failure where nobody can tell.
bool is_here(const std::string& path);

// Names in a folder, sorted by their bytes. Throws Failure if it cannot be read.
std::vector<std::string> names_in(const std::string& folder);

// Every file below a folder, and the folders that are links or hidden, as paths relative to it.
std::vector<std::string> names_below(const std::string& folder);

// The path of a file of a folder. Throws Failure if there is none, or a link leads out of the
// folder: but for those of the Hugging Face cache to its own blobs.
std::string inside(const std::string& folder, const std::string& name);

// Whether a folder is a snapshot in the Hugging Face cache, or lies in one.
bool in_hub_cache(const std::string& folder);

// A small file of a folder. Throws Failure if there is none, or it has more than `most` bytes.
std::string read_inside(const std::string& folder, const std::string& name, std::size_t most);

// Most bytes of a configuration.
inline constexpr std::size_t kMaxConfig = 1'000'000;

}  // namespace nola::files
