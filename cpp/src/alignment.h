// Refuses what the language does not allow to be read: elements that are not aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace nola {

inline void check_aligned(const char* name, const void* pointer, std::size_t alignment) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % alignment != 0) {
        throw std::invalid_argument(std::string(name) + ": is not aligned to its elements of " +
                                    std::to_string(alignment) + " bytes; pass a copy");
    }
}

}  // namespace nola
