// The scalar part of the generator, shared by expand and project.
#pragma once

#include <cstddef>

#include "kernels/kernels.h"
#include "nola/basis.h"

namespace nola {

kernels::Generator make_generator(const BasisStream& stream);

// Draws needed for num_basis bases.
std::uint32_t draw_count(Basis kind, std::size_t num_basis);

}  // namespace nola
