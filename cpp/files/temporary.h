// Temporary folders that stand beside an output while it is written, and what is left of dead ones.
//
// A temporary's name says who made it, as those of the Python package do: the machine, its boot,
// the namespace of processes, the process and when that started. One is removed only where its
// owner is provably dead.
#pragma once

#include <functional>
#include <string>

namespace nola::files {

// Within a temporary: the new output, until it is in place; the output that it replaces, where the
// two cannot be exchanged in one step; and a note of the new one's inode, made before they are.
inline constexpr const char* kNew = "new";
inline constexpr const char* kReplaced = "replaced";
inline constexpr const char* kExchanged = "exchanged";

// Whether the target may be lost, had it come to hold what stands at a path.
using MayReplace = std::function<bool(const std::string& path)>;

// A new name beside a target, which says that this process is its owner.
std::string temporary_path(const std::string& target);

// Removes the temporaries of a target whose owners are dead.
void sweep(const std::string& target, const MayReplace& may_replace);

// Takes out of a temporary what stood at the target and is not to be lost: what was taken away for
// a new output that never came is put back; what came out of an exchange is kept beside the target
// if it may not be lost. Throws std::system_error.
void put_back(const std::string& temporary, const std::string& target,
              const MayReplace& may_replace);

// Gives what stood at a target a name beside it, and returns that.
std::string keep(const std::string& path, const std::string& target);

// Notes which one is the new output, before it is exchanged with the one that it replaces.
void note_exchange(const std::string& temporary);

}  // namespace nola::files
