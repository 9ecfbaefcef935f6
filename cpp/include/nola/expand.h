// expand: from coefficients to a matrix, out = g * sum_i coefficients[i] * basis_i.
#pragma once

#include <cstddef>

#include "nola/basis.h"

namespace nola {

// Writes the matrix's window into `out`, window.rows() x window.cols() floats, row-major and
// contiguous. `coefficients` (num_basis floats) must not overlap `out`.
//
// Deterministic to the bit: the same values on every ISA, for any number of threads and any way of
// cutting a matrix into windows. Thread-safe. num_threads <= 0 takes OpenMP's default;
// more than four for each processor, or than can be made, are not started.
// Throws std::invalid_argument, naming the argument, before anything is written.
void expand(const Matrix& matrix, const float* coefficients, float* out, int num_threads = 0);

}  // namespace nola
