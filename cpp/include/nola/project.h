// project: the adjoint of expand, gradient[i] = g * sum_e grad[e] * basis_i[e].
#pragma once

#include <cstddef>
#include <functional>

#include "nola/basis.h"

namespace nola {

// Reads the gradient of the matrix's window from `grad` (window.rows() x window.cols() floats,
// row-major, contiguous) and writes num_basis floats to `out`; elements outside the window count as
// zero.
//
// The order of summation depends only on the arguments: the same bits on every ISA and for any
// number of threads. Thread-safe. num_threads as for expand.
// Throws std::invalid_argument, naming the argument, before anything is written.
//
// A sum in a fixed order cannot be cut into calls. So `stopped`, if given, is asked now and then on
// the calling thread whether to give up; then nothing is written, and the result is false.
bool project(const Matrix& matrix, const float* grad, float* out, int num_threads = 0,
             const std::function<bool()>& stopped = nullptr);

}  // namespace nola
