// Access to the kernel set in use.
#pragma once

#include "kernels/kernels.h"

namespace nola {

const kernels::KernelSet& active_kernels();

}  // namespace nola
