#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace nola::adapters {

namespace {

constexpr std::size_t kBlock = 128;
constexpr std::size_t kLanes = 8;

// The sum of doubles in the order in which numpy adds them.
double sum(const double* values, std::size_t count) {
    if (count < kLanes) {
        double total = 0;
        for (std::size_t i = 0; i < count; ++i) {
            total += values[i];
        }
        return total;
    }
    if (count > kBlock) {
        const std::size_t half = count / 2 - count / 2 % kLanes;
        return sum(values, half) + sum(values + half, count - half);
    }
    double lanes[kLanes];
    std::copy_n(values, kLanes, lanes);
    const std::size_t together = count - count % kLanes;
    for (std::size_t i = kLanes; i < together; ++i) {
        lanes[i % kLanes] += values[i];
    }
    double total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                   ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    for (std::size_t i = together; i < count; ++i) {
        total += values[i];
    }
    return total;
}

double mean_of(const std::vector<double>& values) {
    return sum(values.data(), values.size()) / static_cast<double>(values.size());
}

// As numpy counts: a value is put into a bin by its distance from the first edge, and then moved
// by one where the edges say otherwise.
void count_bins(const std::vector<double>& values, Distribution& found) {
    constexpr auto kBins = Distribution::kBins;
    const bool is_point = found.low == found.high;
    const double first = is_point ? found.low - 0.5 : found.low;
    const double last = is_point ? found.high + 0.5 : found.high;
    const double step = (last - first) / static_cast<double>(kBins);
    const auto edge = [&](std::size_t bin) {
        return bin == kBins ? last : static_cast<double>(bin) * step + first;
    };
    for (const double value : values) {
        const double place = (value - first) / (last - first) * static_cast<double>(kBins);
        std::size_t bin = std::min(static_cast<std::size_t>(place), kBins - 1);
        if (value < edge(bin)) {
            --bin;
        } else if (bin != kBins - 1 && value >= edge(bin + 1)) {
            ++bin;
        }
        ++found.histogram[bin];
    }
}

bool is_number(const std::string& part) {
    return !part.empty() &&
           std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// A name with a star for each part of it that is a number.
std::string pattern_of(const std::string& name) {
    std::string pattern;
    std::size_t begin = 0;
    while (begin <= name.size()) {
        const std::size_t end = std::min(name.find('.', begin), name.size());
        const std::string part = name.substr(begin, end - begin);
        pattern += (begin == 0 ? "" : ".") + (is_number(part) ? "*" : part);
        begin = end + 1;
    }
    return pattern;
}

void add_shape(Pattern& pattern, const TensorShape& shape) {
    const auto place = std::find_if(pattern.shapes.begin(), pattern.shapes.end(),
                                    [&](const auto& known) { return known.first == shape; });
    if (place == pattern.shapes.end()) {
        pattern.shapes.emplace_back(shape, 1);
    } else {
        ++place->second;
    }
}

}  // namespace

Distribution Distribution::of(const std::vector<float>& values) {
    const std::vector<double> wide(values.begin(), values.end());
    Distribution found;
    found.count = wide.size();
    found.zeros = static_cast<std::uint64_t>(std::count(wide.begin(), wide.end(), 0.0));
    found.mean = mean_of(wide);
    const auto [low, high] = std::minmax_element(wide.begin(), wide.end());
    found.low = *low;
    found.high = *high;
    std::vector<double> squares(wide.size());
    std::transform(wide.begin(), wide.end(), squares.begin(),
                   [&](double value) { return (value - found.mean) * (value - found.mean); });
    found.std = std::sqrt(mean_of(squares));
    count_bins(wide, found);
    return found;
}

std::string Distribution::picture() const {
    static constexpr const char* kLevels[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    const std::uint64_t most = *std::max_element(histogram.begin(), histogram.end());
    std::string drawn;
    for (const std::uint64_t bin : histogram) {
        drawn += kLevels[(bin * 8 + most - 1) / most];
    }
    return drawn;
}

std::vector<Pattern> patterns(const std::vector<std::string>& names,
                              const std::vector<TensorShape>& shapes) {
    std::vector<Pattern> found;
    std::unordered_map<std::string, std::size_t> places;
    for (std::size_t i = 0; i < names.size(); ++i) {
        const std::string pattern = pattern_of(names[i]);
        const auto [place, is_new] = places.emplace(pattern, found.size());
        if (is_new) {
            found.push_back({names[i], 0, {}});
        }
        Pattern& group = found[place->second];
        group.name = ++group.count == 1 ? names[i] : pattern;
        if (!shapes.empty()) {
            add_shape(group, shapes[i]);
        }
    }
    return found;
}

}  // namespace nola::adapters
