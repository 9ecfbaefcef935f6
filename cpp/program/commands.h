// The commands, one file for each.
#pragma once

#include "options.h"

namespace nola::program {

Command export_gguf_lora_command();
Command hash_command();
Command inspect_command();
Command merge_command();

}  // namespace nola::program
