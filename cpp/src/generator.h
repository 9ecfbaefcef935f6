// The scalar part of the generator, shared by expand and project.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "nola/basis.h"

namespace nola {

kernels::Generator make_generator(const Matrix& matrix);

// Draws needed for all of a matrix's bases.
std::uint32_t draw_count(const Matrix& matrix);

}  // namespace nola
