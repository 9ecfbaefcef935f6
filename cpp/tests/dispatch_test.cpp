#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "nola/expand.h"
#include "nola/isa.h"

// Run by itself, once for each value of NOLA_EDGE_ISA, before anything was forced.
TEST_CASE("environment: NOLA_EDGE_ISA decides, or is refused") {
    const char* forced = std::getenv("NOLA_EDGE_ISA");
    if (forced == nullptr) {
        CHECK(nola::active_isa() == nola::supported_isas().back());
        return;
    }
    const nola::Isa wanted = nola::isa_from_name(forced);
    const auto supported = nola::supported_isas();
    if (std::find(supported.begin(), supported.end(), wanted) == supported.end()) {
        CHECK_THROWS_AS(nola::active_isa(), std::invalid_argument);
        return;
    }
    CHECK(nola::active_isa() == wanted);
}

TEST_CASE("dispatch: unknown and unavailable sets are refused by name") {
    CHECK_THROWS_AS(nola::isa_from_name("sse9"), std::invalid_argument);
    const auto supported = nola::supported_isas();
    for (const nola::Isa isa : {nola::Isa::kNeon, nola::Isa::kAvx2, nola::Isa::kAvx512}) {
        if (std::find(supported.begin(), supported.end(), isa) == supported.end()) {
            CHECK_THROWS_WITH_AS(nola::force_isa(isa),
                                 doctest::Contains(std::string(nola::isa_name(isa)).c_str()),
                                 std::invalid_argument);
        }
    }
    CHECK(supported.front() == nola::Isa::kPortable);
}
