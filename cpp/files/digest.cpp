#include "digest.h"

#include "byte_order.h"
#include "sha_ni.h"

namespace nola::files {

namespace {

struct Functions {
    void (*update)(sha256_ctx*, const unsigned char*, std::size_t);
    void (*final)(sha256_ctx*, unsigned char*);
};

Functions fastest() {
#ifdef RHASH_SSE4_SHANI
    // The processor's own instructions take a fifth of the time.
    if (has_cpu_feature(CPU_FEATURE_SHANI) != 0) {
        return {rhash_sha256_ni_update, rhash_sha256_ni_final};
    }
#endif
    return {rhash_sha256_update, rhash_sha256_final};
}

const Functions& functions() {
    static const Functions found = fastest();
    return found;
}

}  // namespace

void Sha256::add(const void* bytes, std::size_t count) {
    functions().update(&state_, static_cast<const unsigned char*>(bytes), count);
}

std::string Sha256::hex() {
    unsigned char digest[sha256_hash_size];
    functions().final(&state_, digest);
    constexpr char kDigits[] = "0123456789abcdef";
    std::string text;
    for (const unsigned char byte : digest) {
        text += kDigits[byte >> 4];
        text += kDigits[byte & 15];
    }
    return text;
}

}  // namespace nola::files
