// Whatever bytes are given as a packed adapter: it is read, or refused in one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "adapters/packed.h"
#include "files/failure.h"
#include "files/printable.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        nola::adapters::read_packed(
            std::make_shared<nola::files::MemoryInput>("fuzzed", data, size));
    } catch (const nola::files::Failure& failure) {
        if (!nola::files::is_printable(failure.what())) {
            std::abort();
        }
    }
    return 0;
}
