#include "temporary.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <optional>
#include <random>
#include <sstream>
#include <string_view>
#include <vector>

#include "digest.h"
#include "failure.h"
#include "paths.h"
#include "renaming.h"

namespace nola::files {

namespace {

// A week, in seconds: nobody writes for so long without a single change to the files.
constexpr std::time_t kLongAge = 604800;
// Bytes of a target's name that a temporary's name repeats; file systems allow 255 in all.
constexpr std::size_t kLongestName = 140;
// In a process's flags: it is ending (Linux's PF_EXITING).
constexpr std::uint64_t kExiting = 0x4;
constexpr std::string_view kNobody = "00000000";
constexpr std::string_view kEnding = ".partial";

struct Owner {
    std::string host;
    std::string boot;
    std::uint64_t name_space = 0;
    std::uint64_t process = 0;
    std::uint64_t started = 0;  // in the kernel's ticks; 0 where that cannot be had
};

std::string text_of_file(const std::string& path) {
    std::string text;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    std::array<char, 4096> part{};
    while (fd >= 0) {
        const ssize_t count = ::read(fd, part.data(), part.size());
        if (count <= 0) {
            break;
        }
        text.append(part.data(), static_cast<std::size_t>(count));
    }
    if (fd >= 0) {
        ::close(fd);
    }
    return text;
}

std::string digest(std::string_view text) {
    Sha256 sha256;
    sha256.add(text);
    return sha256.hex().substr(0, 8);
}

std::string random_digits() {
    std::random_device random;
    char text[9];
    std::snprintf(text, sizeof text, "%08x", random());
    return text;
}

// When a process was started, in ticks; nothing if unknown, -1 if it is a zombie or ending: it
// does nothing more.
std::optional<std::int64_t> started(std::uint64_t process) {
    const std::string text = text_of_file("/proc/" + std::to_string(process) + "/stat");
    const std::size_t end = text.rfind(')');
    if (end == text.npos) {
        return std::nullopt;
    }
    std::istringstream rest(text.substr(end + 1));
    std::vector<std::string> fields;
    for (std::string field; rest >> field;) {
        fields.push_back(field);
    }
    if (fields.size() < 20) {
        return std::nullopt;
    }
    const bool ends = fields[0] == "Z" || fields[0] == "X" ||
                      (std::strtoull(fields[6].c_str(), nullptr, 10) & kExiting) != 0;
    return ends ? -1 : std::strtoll(fields[19].c_str(), nullptr, 10);
}

Owner myself() {
    const std::string machine = text_of_file("/etc/machine-id");
    utsname system{};
    ::uname(&system);
    const auto name_space = status_of("/proc/self/ns/pid");
    Owner owner;
    owner.host =
        machine.empty() ? std::string(kNobody) : digest(std::string(system.nodename) + machine);
    owner.boot = digest(text_of_file("/proc/sys/kernel/random/boot_id"));
    owner.name_space = name_space ? static_cast<std::uint64_t>(name_space->st_ino) : 0;
    owner.process = static_cast<std::uint64_t>(::getpid());
    owner.started =
        static_cast<std::uint64_t>(std::max<std::int64_t>(0, started(owner.process).value_or(0)));
    return owner;
}

std::string prefix(const std::string& target) {
    std::string name = name_of(target);
    if (name.size() > kLongestName) {
        Sha256 sha256;
        sha256.add(name);
        name = sha256.hex();
    }
    return ".nola-edge-" + name + "-";
}

bool are_digits(std::string_view text, std::string_view digits, std::size_t count) {
    return text.find_first_not_of(digits) == text.npos && !text.empty() &&
           (count == 0 || text.size() == count);
}

// Who made a temporary, by what its name has behind the target's; nothing if it is none.
std::optional<Owner> owner_of(std::string_view name) {
    constexpr std::string_view kHex = "0123456789abcdef";
    constexpr std::string_view kDecimal = "0123456789";
    if (name.size() < kEnding.size() || name.substr(name.size() - kEnding.size()) != kEnding) {
        return std::nullopt;
    }
    std::string words(name.substr(0, name.size() - kEnding.size()));
    const std::size_t dash = words.rfind('-');
    if (dash == words.npos || !are_digits(std::string_view(words).substr(dash + 1), kHex, 8)) {
        return std::nullopt;
    }
    words.resize(dash);
    std::vector<std::string> parts;
    std::istringstream rest(words);
    for (std::string part; std::getline(rest, part, '.');) {
        parts.push_back(part);
    }
    const bool fits =
        parts.size() == 5 && are_digits(parts[0], kHex, 8) && are_digits(parts[1], kHex, 8) &&
        std::all_of(parts.begin() + 2, parts.end(),
                    [&](const std::string& part) { return are_digits(part, kDecimal, 0); });
    if (!fits) {
        return std::nullopt;
    }
    const auto number = [&](std::size_t i) { return std::strtoull(parts[i].c_str(), nullptr, 10); };
    return Owner{parts[0], parts[1], number(2), number(3), number(4)};
}

// Whether a process of this machine is there, and is not another of the same number.
bool runs(const Owner& owner) {
    // Before it is looked for: when one that is gone was started is as unknown as where /proc is
    // not to be read.
    const auto since = started(owner.process);
    if (::kill(static_cast<pid_t>(owner.process), 0) != 0 && errno == ESRCH) {
        return false;
    }
    return owner.started == 0 || !since || *since == static_cast<std::int64_t>(owner.started);
}

std::time_t last_change(const std::string& path) {
    const auto status = link_status_of(path);
    if (!status) {
        throw_errno();
    }
    std::time_t latest = status->st_mtime;
    if (S_ISDIR(status->st_mode)) {
        for (const std::string& name : names_in(path)) {
            latest = std::max(latest, last_change(join(path, name)));
        }
    }
    return latest;
}

// When this machine was started, in seconds since 1970; 0 if unknown.
std::time_t boot_time() {
    const std::string text = text_of_file("/proc/stat");
    const std::size_t place = text.find("\nbtime ");
    const long long seconds =
        place == text.npos ? 0 : std::strtoll(text.c_str() + place + 7, nullptr, 10);
    return static_cast<std::time_t>(seconds);
}

// Whether an owner is provably dead; one that cannot be asked after is taken for alive.
bool is_dead(const Owner& owner, const std::string& temporary) {
    const Owner me = myself();
    if (owner.host == me.host && owner.boot == me.boot && owner.name_space == me.name_space) {
        return !runs(owner);
    }
    const std::time_t changed = last_change(temporary);
    if (owner.host == me.host && me.host != kNobody && owner.boot != me.boot &&
        changed < boot_time()) {
        return true;  // the machine has been restarted since
    }
    return changed < std::time(nullptr) - kLongAge;
}

// Whether the new output has left its temporary, or stands at the target as well.
bool is_in_place(const std::string& made, const std::string& target) {
    const auto one = link_status_of(made);
    const auto other = link_status_of(target);
    return !one || (other && one->st_dev == other->st_dev && one->st_ino == other->st_ino);
}

// Whether what is found for the new output is the one that it replaced.
bool is_exchanged(const std::string& temporary) {
    const std::string noted = text_of_file(join(temporary, kExchanged));
    const auto found = link_status_of(join(temporary, kNew));
    return !noted.empty() && found && std::to_string(found->st_ino) != noted;
}

}  // namespace

std::string temporary_path(const std::string& target) {
    const Owner owner = myself();
    const std::string name = owner.host + "." + owner.boot + "." +
                             std::to_string(owner.name_space) + "." +
                             std::to_string(owner.process) + "." + std::to_string(owner.started);
    return join(parent_of(target),
                prefix(target) + name + "-" + random_digits() + std::string(kEnding));
}

void sweep(const std::string& target, const MayReplace& may_replace) {
    const std::string folder = parent_of(target);
    const std::string begin = prefix(target);
    for (const std::string& name : names_in(folder)) {
        const std::string path = join(folder, name);
        const auto owner = name.compare(0, begin.size(), begin) == 0
                               ? owner_of(name.substr(begin.size()))
                               : std::nullopt;
        if (!owner || is_link(path) || !is_folder(path)) {
            continue;
        }
        try {
            if (is_dead(*owner, path)) {
                put_back(path, target, may_replace);
                remove_whole(path);
            }
        } catch (const std::system_error&) {  // another's, or gone
        } catch (const Failure&) {
        }
    }
}

void put_back(const std::string& temporary, const std::string& target,
              const MayReplace& may_replace) {
    const std::string made = join(temporary, kNew);
    const std::string replaced = join(temporary, kReplaced);
    const bool in_vain = link_status_of(replaced) && !is_in_place(made, target);
    if (in_vain && !rename_new(replaced, target)) {
        keep(replaced, target);
    }
    if (is_exchanged(temporary) && !may_replace(made)) {
        keep(made, target);
    }
}

std::string keep(const std::string& path, const std::string& target) {
    const std::string name = name_of(target).substr(0, kLongestName);
    std::string kept = join(parent_of(target), name + ".replaced-" + random_digits());
    rename_over(path, kept);
    return kept;
}

void note_exchange(const std::string& temporary) {
    const auto status = link_status_of(join(temporary, kNew));
    if (!status) {
        throw_errno();
    }
    const std::string note = std::to_string(status->st_ino);
    const std::string path = join(temporary, kExchanged);
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) {
        throw_errno();
    }
    const bool is_written =
        ::write(fd, note.data(), note.size()) == static_cast<ssize_t>(note.size());
    ::close(fd);
    if (!is_written) {
        throw_errno();
    }
}

}  // namespace nola::files
