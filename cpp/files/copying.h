// Bytes from file to file, within the kernel where it can.
#pragma once

#include <cstdint>

#include "input.h"

namespace nola::files {

// Copies bytes to an offset of a descriptor. Throws Failure if they cannot be read, and
// std::system_error if they cannot be written.
void copy_range(const FileInput& source, std::uint64_t begin, int fd, std::uint64_t offset,
                std::uint64_t count);

// The same in pieces, on several threads, which a signal ends.
void copy_in_pieces(const FileInput& source, std::uint64_t begin, int fd, std::uint64_t offset,
                    std::uint64_t count, int num_threads);

}  // namespace nola::files
