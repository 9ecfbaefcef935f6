// The commands, one file for each.
#pragma once

#include "options.h"

namespace nola::program {

Command hash_command();
Command inspect_command();
Command merge_command();

}  // namespace nola::program
