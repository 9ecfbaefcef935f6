#include "adapter.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "adapters/packed.h"
#include "files/failure.h"
#include "files/paths.h"
#include "files/printable.h"
#include "files/signature.h"
#include "layout.h"
#include "options.h"
#include "output.h"

namespace nola::program {

namespace {

using adapters::WeightedAdapter;
using files::Failure;
using files::printable;

// Whether a text is a decimal number, and nothing else that strtod would take.
bool is_decimal(std::string_view text) {
    const auto skip_digits = [&] {
        const std::size_t count = std::min(text.find_first_not_of("0123456789"), text.size());
        text.remove_prefix(count);
        return count;
    };
    const auto skip = [&](std::string_view signs) {
        const bool found = !text.empty() && signs.find(text[0]) != signs.npos;
        text.remove_prefix(found ? 1 : 0);
        return found;
    };
    skip("+-");
    std::size_t digits = skip_digits();
    if (skip(".")) {
        digits += skip_digits();
    }
    if (digits != 0 && skip("eE")) {
        skip("+-");
        digits = skip_digits();
    }
    return digits != 0 && text.empty();
}

// Where an adapter is, and the weight of its factors: PATH or PATH=WEIGHT, where a path that is
// there wins.
std::pair<std::string, double> parse_adapter(const std::string& text) {
    const std::size_t sign = text.rfind('=');
    if (sign == text.npos || files::status_of(text)) {
        return {given_path("adapter", text), 1.0};
    }
    const std::string weight = text.substr(sign + 1);
    if (!is_decimal(weight)) {
        throw Failure("", text, "'" + printable(weight) + "' is not a weight such as 0.5",
                      "ArgumentError");
    }
    return {given_path("adapter", text.substr(0, sign)), std::strtod(weight.c_str(), nullptr)};
}

// Refuses a weight that is too large, and warns of one that does not do what was meant.
void check_weight(const WeightedAdapter& adapter) {
    const double scaling = adapter.adapter.config.scaling();
    const double product = adapter.weight * scaling;
    if (!(std::fabs(product) <= static_cast<double>(std::numeric_limits<float>::max()))) {
        throw Failure(adapter.path, "weight",
                      files::shortest(adapter.weight) + " times the adapter's scaling " +
                          general(scaling) + " is not a finite float32",
                      "ArgumentError");
    }
    if (static_cast<float>(product) == 0) {
        warn("warning: " + printable(adapter.path, 240) + ": weight: " +
             (adapter.weight == 0 ? "is 0"
                                  : files::shortest(adapter.weight) + " times the scaling " +
                                        general(scaling) + " is 0 in float32") +
             ", so its factors add nothing to any weight; correct that, or leave the adapter out");
    }
}

}  // namespace

std::shared_ptr<const files::FileInput> open_adapter(const std::string& path) {
    if (!files::is_here(path)) {
        throw files::AdapterFailure(path, "", "does not exist");
    }
    if (files::is_folder(path)) {
        throw files::AdapterFailure(path, "",
                                    "is a folder, and this program reads packed adapters: pack it "
                                    "with nola-edge pack of the Python package");
    }
    if (files::is_gguf(path)) {
        throw files::Failure(path, "", "is a GGUF file, not an adapter");
    }
    return std::make_shared<files::FileInput>(path.c_str());
}

GivenAdapters given_adapters(const std::vector<std::string>& places, std::size_t first) {
    GivenAdapters given;
    for (std::size_t i = first; i < places.size(); ++i) {
        given.push_back(parse_adapter(places[i]));
    }
    for (const auto& [path, weight] : given) {
        if (!files::is_here(path)) {
            throw files::AdapterFailure(path, "", "does not exist");
        }
    }
    return given;
}

std::vector<WeightedAdapter> load_adapters(const GivenAdapters& given) {
    std::vector<WeightedAdapter> adapters;
    for (const auto& [path, weight] : given) {
        adapters.push_back({adapters::read_packed(open_adapter(path)), path, weight});
        check_weight(adapters.back());
    }
    return adapters;
}

}  // namespace nola::program
