#include "content_hash.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "digest.h"
#include "failure.h"
#include "input.h"
#include "paths.h"
#include "pieces.h"
#include "printable.h"
#include "stop.h"

namespace nola::files {

namespace {

constexpr std::uint64_t kAtOnce = 1U << 20;

void add_files(const std::string& folder, const std::string& here,
               std::vector<std::string>& found) {
    for (const std::string& name : names_in(join(folder, here))) {
        const std::string relative = here.empty() ? name : join(here, name);
        const std::string path = join(folder, relative);
        if (is_folder(path)) {
            if (is_link(path)) {
                throw Failure(path, "", "is a link to a folder; a result has none");
            }
            add_files(folder, relative, found);
            continue;
        }
        // `sha256sum` would write such names otherwise, and not everybody alike.
        if (!is_printable(relative) || relative.find('\\') != relative.npos) {
            throw Failure(folder, "",
                          printable(relative) + " has a name that lists of hashes cannot hold");
        }
        found.push_back(relative);
    }
}

struct FileHash {
    std::string sha256;
    std::uint64_t bytes = 0;
};

FileHash hash_file(const std::string& path) {
    const FileInput file(path.c_str());
    Sha256 digest;
    std::string part;
    for (std::uint64_t at = 0; at < file.size(); at += part.size()) {
        check_stopped();
        part.resize(static_cast<std::size_t>(std::min(kAtOnce, file.size() - at)));
        file.read(at, part.data(), part.size());
        digest.add(part);
    }
    file.check_unchanged();
    return {digest.hex(), file.size()};
}

ContentHash hash_folder(const std::string& folder, int num_threads) {
    std::vector<std::string> names;
    add_files(folder, "", names);
    if (names.empty()) {
        throw Failure(folder, "", "is a folder without files");
    }
    std::vector<FileHash> hashes(names.size());
    for_each_piece(names.size(), num_threads,
                   [&](std::size_t i) { hashes[i] = hash_file(join(folder, names[i])); });
    ContentHash found;
    for (std::size_t i = 0; i < names.size(); ++i) {
        found.files.emplace(names[i], hashes[i].sha256);
        found.bytes += hashes[i].bytes;
    }
    found.sha256 = hash_of_list(found.files);
    return found;
}

}  // namespace

ContentHash content_hash(const std::string& path, int num_threads) {
    if (is_folder(path)) {
        return hash_folder(path, num_threads);
    }
    const FileHash hash = hash_file(path);
    return {hash.sha256, {{name_of(path), hash.sha256}}, hash.bytes};
}

void check_hash(const std::string& found, const std::string& expected, const std::string& output) {
    if (!expected.empty() && found != expected) {
        throw Mismatch(output, "expect",
                       "would have the SHA-256 " + found + ", not " + expected +
                           " as expected: base, adapters, weights or options are others than those "
                           "that hash was made with");
    }
}

}  // namespace nola::files
