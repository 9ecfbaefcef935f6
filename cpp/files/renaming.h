// Renames that lose nothing, on file systems of every kind.
//
// Linux has one that never overwrites and one that exchanges two names. Where a file system lacks
// them, a hard link never overwrites either; where it lacks that too, a look before a plain rename
// remains. All throw std::system_error.
#pragma once

#include <string>

namespace nola::files {

// Throws std::system_error with errno.
[[noreturn]] void throw_errno();

// Renames unless the target exists; returns whether it was done.
bool rename_new(const std::string& source, const std::string& target);

// Exchanges two names in one step; returns whether the file system can.
bool exchange_names(const std::string& one, const std::string& other);

void rename_over(const std::string& source, const std::string& target);

// Removes a file, or a folder with all that is in it, as far as that can be done.
void remove_whole(const std::string& path);

}  // namespace nola::files
