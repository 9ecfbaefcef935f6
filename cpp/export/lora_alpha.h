// The alpha that says a scaling to programs that divide it by the rank.
#pragma once

#include <cstddef>

namespace nola::exporting {

// The float whose quotient by r is nearest to a scaling; of several, the shortest to write. Where
// s r would need one binary digit more than it has, s is the quotient of no alpha, and that of the
// one returned is the last bit away.
float alpha_of(double scaling, std::size_t r);

}  // namespace nola::exporting
