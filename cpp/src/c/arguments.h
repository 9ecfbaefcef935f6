// Arguments of the C interface, checked and converted, and what is thrown made into statuses.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>

#include "files/failure.h"
#include "nola.h"
#include "nola/merge.h"

namespace nola::c {

// What the last function that failed on this thread had to say.
const char* last_error() noexcept;

// Notes that, and returns the status.
nola_status failed(nola_status status, std::string_view message) noexcept;

// Does the work of a function; what it throws becomes its status.
template <class Work>
nola_status guarded(const Work& work) noexcept {
    try {
        return work();
    } catch (const files::Failure& error) {
        return failed(NOLA_INVALID_FILE, error.what());
    } catch (const std::invalid_argument& error) {
        return failed(NOLA_INVALID_ARGUMENT, error.what());
    } catch (const std::bad_alloc&) {
        return failed(NOLA_OUT_OF_MEMORY, "there is too little memory");
    } catch (const std::length_error&) {
        return failed(NOLA_OUT_OF_MEMORY, "there is too little memory");
    } catch (const std::exception& error) {
        return failed(NOLA_INTERNAL_ERROR, error.what());
    } catch (...) {
        return failed(NOLA_INTERNAL_ERROR, "an unknown exception");
    }
}

[[noreturn]] void refuse(std::string_view name, std::string_view reason);

template <class T>
T& given(const char* name, T* pointer) {
    if (pointer == nullptr) {
        refuse(name, "null");
    }
    return *pointer;
}

// An array, which may be null if it is empty.
template <class T>
T* array(const char* name, T* pointer, std::size_t count) {
    return count == 0 ? pointer : &given(name, pointer);
}

// Enumerators are numbers here: any may come from outside.
template <class T>
T chosen(const char* name, std::int32_t value, std::int32_t last) {
    if (value < 0 || value > last) {
        refuse(name, std::to_string(value) + " is not in 0.." + std::to_string(last));
    }
    return static_cast<T>(value);
}

nola::Factor factor_of(nola_factor factor);

std::size_t size_of(const char* name, std::uint64_t value);

// No array can have more bytes than the difference of two pointers can say, so that no address
// computed from a size that passes here wraps around.
void check_extent(const char* name, std::uint64_t rows, std::uint64_t cols, std::size_t bytes);

nola::Weight weight_of(const nola_weight* weight);

}  // namespace nola::c
