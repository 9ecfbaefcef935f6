// Stored matrices with what adapters add to them, made window by window.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "files/safetensors.h"
#include "nola/quantize.h"
#include "plan.h"

namespace nola::merging {

// Whether matrices of a type can be merged into: floats, or blocks of 32 quantised values.
bool is_mergeable(const std::string& type);
// Whether a type is one of blocks.
bool is_quantized(const std::string& type);

class MatrixWriter {
public:
    // Writes to `fd`. `adapters` are named in refusals, unless that is empty.
    MatrixWriter(int fd, int num_threads, std::string adapters = "");
    ~MatrixWriter();

    // Writes the merged matrix at an offset. One of floats is rounded once; one of blocks is
    // dequantised, merged and quantised again, but for rows that do not change. Returns what is
    // left of the change of one of blocks. Throws files::Failure if a merged weight is not finite,
    // std::system_error if it cannot be written.
    ChangeSums write(const files::StoredTensor& stored, const std::vector<Segment>& segments,
                     std::uint64_t offset);

private:
    class Buffers;
    class Job;

    int fd_;
    int num_threads_;
    std::string adapters_;
    std::unique_ptr<Buffers> buffers_;
};

}  // namespace nola::merging
