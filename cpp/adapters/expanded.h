// Expanded factors.
#pragma once

#include <cstddef>
#include <vector>

#include "nola/basis.h"

namespace nola::adapters {

// The window of a factor, some rows at a time, so that a signal ends it soon.
std::vector<float> expanded(const Matrix& matrix, const std::vector<float>& coefficients,
                            int num_threads);

}  // namespace nola::adapters
