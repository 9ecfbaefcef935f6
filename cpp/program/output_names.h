// Names of outputs that say something else than what is written are refused.
#pragma once

#include <string>
#include <string_view>

namespace nola::program {

// Refuses the name of a file for an output that is a folder; `what` says why it is one.
void check_folder_name(const std::string& output, const std::string& what);

// Refuses a name without the suffix, dot and all, for an output that is a file; in a folder that is
// given instead, it would be called as `name`.
void check_file_name(const std::string& output, std::string_view suffix, const std::string& what,
                     const std::string& name);

}  // namespace nola::program
