#include "paths.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "failure.h"
#include "input.h"
#include "printable.h"

namespace nola::files {

namespace {

std::vector<std::string_view> parts_of(std::string_view path) {
    std::vector<std::string_view> parts;
    while (!path.empty()) {
        const std::size_t length = std::min(path.find('/'), path.size());
        if (length > 0 && path.substr(0, length) != ".") {
            parts.push_back(path.substr(0, length));
        }
        path.remove_prefix(std::min(length + 1, path.size()));
    }
    return parts;
}

std::string joined(const std::vector<std::string_view>& parts, bool from_root) {
    std::string path = from_root ? "/" : "";
    for (const std::string_view part : parts) {
        path += (path.empty() || path == "/" ? "" : "/") + std::string(part);
    }
    return path.empty() ? "." : path;
}

bool begins_at_root(std::string_view path) {
    return path.substr(0, 1) == "/";
}

std::string current_folder() {
    char path[PATH_MAX];
    return ::getcwd(path, sizeof path) == nullptr ? "/" : path;
}

std::optional<std::string> real(const std::string& path) {
    const std::unique_ptr<char, decltype(&std::free)> found(::realpath(path.c_str(), nullptr),
                                                            std::free);
    return found == nullptr ? std::nullopt : std::optional<std::string>(found.get());
}

Failure unreadable(const std::string& folder) {
    return {folder, "", std::string("cannot be read: ") + std::strerror(errno)};
}

// Where the Hugging Face cache keeps the files of a folder in it, links resolved.
std::vector<std::string> blobs(std::string_view folder) {
    std::vector<std::string> places;
    for (std::string place(folder); place != "/" && place != "."; place = parent_of(place)) {
        if (name_of(parent_of(place)) == "snapshots") {
            places.push_back(resolved(join(parent_of(parent_of(place)), "blobs")));
        }
    }
    return places;
}

void add_names_below(const std::string& folder, const std::string& before,
                     std::vector<std::string>& found) {
    for (const std::string& name : names_in(folder)) {
        const std::string path = join(folder, name);
        const bool goes_on = is_folder(path);
        if (!goes_on || is_link(path) || name[0] == '.') {
            found.push_back(before + name);
        }
        if (goes_on && !is_link(path)) {
            add_names_below(path, before + name + "/", found);
        }
    }
}

}  // namespace

std::string normal(std::string_view path) {
    return joined(parts_of(path), begins_at_root(path));
}

std::string join(std::string_view folder, std::string_view name) {
    return normal(begins_at_root(name) ? std::string(name)
                                       : std::string(folder) + "/" + std::string(name));
}

std::string name_of(std::string_view path) {
    const auto parts = parts_of(path);
    return parts.empty() ? "" : std::string(parts.back());
}

std::string parent_of(std::string_view path) {
    auto parts = parts_of(path);
    if (!parts.empty()) {
        parts.pop_back();
    }
    return joined(parts, begins_at_root(path));
}

std::string absolute(std::string_view path) {
    const std::string whole =
        begins_at_root(path) ? std::string(path) : current_folder() + "/" + std::string(path);
    std::vector<std::string_view> kept;
    for (const std::string_view part : parts_of(whole)) {
        if (part != "..") {
            kept.push_back(part);
        } else if (!kept.empty()) {
            kept.pop_back();
        }
    }
    return joined(kept, true);
}

std::string resolved(std::string_view path) {
    const std::string whole = begins_at_root(path) ? normal(path) : join(current_folder(), path);
    if (const auto found = real(whole)) {
        return *found;
    }
    return whole == "/" ? whole : join(resolved(parent_of(whole)), name_of(whole));
}

bool is_within(std::string_view path, std::string_view folder) {
    const auto inner = parts_of(path);
    const auto outer = parts_of(folder);
    return inner.size() >= outer.size() && std::equal(outer.begin(), outer.end(), inner.begin());
}

std::optional<struct stat> status_of(const std::string& path) {
    struct stat status{};
    return ::stat(path.c_str(), &status) == 0 ? std::optional(status) : std::nullopt;
}

std::optional<struct stat> link_status_of(const std::string& path) {
    struct stat status{};
    return ::lstat(path.c_str(), &status) == 0 ? std::optional(status) : std::nullopt;
}

bool is_folder(const std::string& path) {
    const auto status = status_of(path);
    return status && S_ISDIR(status->st_mode);
}

bool is_file(const std::string& path) {
    const auto status = status_of(path);
    return status && S_ISREG(status->st_mode);
}

bool is_link(const std::string& path) {
    const auto status = link_status_of(path);
    return status && S_ISLNK(status->st_mode);
}

bool is_here(const std::string& path) {
    if (status_of(path)) {
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) {
        throw Failure(path, "", std::string("cannot be opened: ") + std::strerror(errno));
    }
    return false;
}

std::vector<std::string> names_in(const std::string& folder) {
    const std::unique_ptr<DIR, int (*)(DIR*)> open(::opendir(folder.c_str()), ::closedir);
    if (open == nullptr) {
        throw unreadable(folder);
    }
    std::vector<std::string> names;
    for (errno = 0; const dirent* entry = ::readdir(open.get()); errno = 0) {
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") {
            names.emplace_back(name);
        }
    }
    if (errno != 0) {
        throw unreadable(folder);
    }
    std::sort(names.begin(), names.end());
    return names;
}

std::vector<std::string> names_below(const std::string& folder) {
    std::vector<std::string> found;
    add_names_below(folder, "", found);
    return found;
}

std::string inside(const std::string& folder, const std::string& name) {
    std::string path = join(folder, name);
    const auto target = real(path);
    if (!target && errno == EACCES) {
        throw Failure(path, "", std::string("cannot be opened: ") + std::strerror(errno));
    }
    if (!target) {
        throw CheckpointFailure(path, "", is_link(path) ? "is a broken link" : "does not exist");
    }
    const std::string root = resolved(folder);
    const auto places = blobs(root);
    if (!is_within(*target, root) &&
        std::find(places.begin(), places.end(), parent_of(*target)) == places.end()) {
        throw CheckpointFailure(path, "",
                                "is a link that leads out of the folder, to " + printable(*target) +
                                    "; put the file itself there");
    }
    return path;
}

bool in_hub_cache(const std::string& folder) {
    for (std::string place = folder; place != "/" && place != "."; place = parent_of(place)) {
        const std::string above = parent_of(place);
        if (name_of(above) == "snapshots" && name_of(parent_of(above)).substr(0, 8) == "models--") {
            return true;
        }
    }
    return false;
}

std::string read_inside(const std::string& folder, const std::string& name, std::size_t most) {
    const FileInput file(inside(folder, name).c_str());
    if (file.size() > most) {
        throw CheckpointFailure(file.name(), "",
                                "has " + std::to_string(file.size()) +
                                    " bytes, more than the limit of " + std::to_string(most));
    }
    return file.read_text(0, static_cast<std::size_t>(file.size()));
}

}  // namespace nola::files
