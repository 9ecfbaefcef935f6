// Whatever bytes are given as a GGUF file: its header is read, or refused in one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "files/failure.h"
#include "files/gguf.h"
#include "files/printable.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const nola::files::GgufFile file(
            std::make_shared<nola::files::MemoryInput>("fuzzed", data, size));
        for (const nola::files::TensorInfo& tensor : file.tensors()) {
            if (tensor.stop > size) {
                std::abort();
            }
        }
    } catch (const nola::files::Failure& failure) {
        if (!nola::files::is_printable(failure.what())) {
            std::abort();
        }
    }
    return 0;
}
