// Hashes of what is added piece by piece.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <string_view>

#include "blake2b.h"
#include "sha256.h"

namespace nola::files {

class Sha256 {
public:
    Sha256() { rhash_sha256_init(&state_); }

    void add(const void* bytes, std::size_t count);
    void add(std::string_view text) { add(text.data(), text.size()); }

    // 64 hexadecimal digits; nothing may be added afterwards.
    std::string hex();

private:
    sha256_ctx state_{};
};

// BLAKE2b with a digest of 16 bytes.
class Blake2b128 {
public:
    Blake2b128();

    void add(std::string_view text);

    // 32 hexadecimal digits; nothing may be added afterwards.
    std::string hex();

private:
    blake2b_ctx state_{};
};

// The SHA-256 of what sha256sum prints of files: path -> SHA-256, in the order of the paths' bytes.
std::string hash_of_list(const std::map<std::string, std::string>& files);

}  // namespace nola::files
