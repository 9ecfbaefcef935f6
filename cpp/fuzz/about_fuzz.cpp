// The same for its configuration and names, so that the fuzzer needs to invent neither the
// container nor zlib.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "adapters/config.h"
#include "files/failure.h"
#include "files/json.h"
#include "files/printable.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const nola::files::Json json({reinterpret_cast<const char*>(data), size}, "fuzzed");
        nola::adapters::parse_config(json.root(), "fuzzed");
    } catch (const nola::files::Failure& failure) {
        if (!nola::files::is_printable(failure.what())) {
            std::abort();
        }
    }
    return 0;
}
