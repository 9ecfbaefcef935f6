#include "copying.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "output.h"
#include "pieces.h"

namespace nola::files {

namespace {

constexpr std::uint64_t kBuffer = 1U << 20;
constexpr std::uint64_t kPiece = 8U << 20;

// How many bytes were copied; 0 or less where the kernel cannot, for whatever reason: kernels and
// file systems refuse in many words, and a plain copy says what is wrong.
std::int64_t copy_in_kernel(int source, std::uint64_t begin, int fd, std::uint64_t offset,
                            std::uint64_t count) {
    auto from = static_cast<off_t>(begin);
    auto to = static_cast<off_t>(offset);
    const auto most = static_cast<std::size_t>(std::min<std::uint64_t>(count, 1U << 30));
    return ::copy_file_range(source, &from, fd, &to, most, 0);
}

}  // namespace

void copy_range(const FileInput& source, std::uint64_t begin, int fd, std::uint64_t offset,
                std::uint64_t count) {
    bool kernel_can = true;
    while (count > 0) {
        std::int64_t done = kernel_can ? copy_in_kernel(source.fd(), begin, fd, offset, count) : 0;
        if (done < 0 && errno == EINTR) {
            continue;
        }
        kernel_can = done > 0;
        if (!kernel_can) {
            const auto size = static_cast<std::size_t>(std::min(kBuffer, count));
            const std::string part = source.read_text(begin, size);
            write_all(fd, part.data(), size, offset);
            done = static_cast<std::int64_t>(size);
        }
        begin += static_cast<std::uint64_t>(done);
        offset += static_cast<std::uint64_t>(done);
        count -= static_cast<std::uint64_t>(done);
    }
}

void copy_in_pieces(const FileInput& source, std::uint64_t begin, int fd, std::uint64_t offset,
                    std::uint64_t count, int num_threads) {
    const auto pieces = static_cast<std::size_t>((count + kPiece - 1) / kPiece);
    for_each_piece(pieces, num_threads, [&](std::size_t piece) {
        const std::uint64_t at = piece * kPiece;
        copy_range(source, begin + at, fd, offset + at, std::min(kPiece, count - at));
    });
}

}  // namespace nola::files
