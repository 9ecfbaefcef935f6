// SHA-256 of a result, which whoever has the same result can compute with any tool.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace nola::files {

struct ContentHash {
    std::string sha256;  // of the whole
    // Of each file, by its path within the folder. Of a file, its own.
    std::map<std::string, std::string> files;
    std::uint64_t bytes = 0;
};

// The hash of a file, or of a folder: that of the lines that coreutils' sha256sum prints of its
// files, as `find .` names them, sorted by their bytes. Throws Failure if something cannot be read,
// changes meanwhile, or is neither file nor folder.
ContentHash content_hash(const std::string& path, int num_threads = 0);

// Refuses a result that has the hash `found` and was to go to `output`, if another one was
// expected. An empty one expects nothing.
void check_hash(const std::string& found, const std::string& expected, const std::string& output);

}  // namespace nola::files
