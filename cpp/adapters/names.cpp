#include "names.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <tuple>

#include "files/failure.h"
#include "files/printable.h"

namespace nola::adapters {

namespace {

using files::Checkpoint;
using files::Mismatch;
using files::printable;
using Parts = std::vector<TensorPart>;

constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kInputEmbeddings[] = {
    "embed_tokens.weight", "wte.weight",    "word_embeddings.weight",
    "embed_in.weight",     "shared.weight",  // of T5 and BART, in encoder and decoder too
};
constexpr std::string_view kOutputLayers[] = {"lm_head.weight", "embed_out.weight"};
constexpr std::size_t kListed = 4;

// What all names of an adapter's model have before a base's names, or lack.
struct Prefix {
    std::string removed;
    std::string added;

    std::string apply(const std::string& name) const {
        const bool has = !removed.empty() && name.compare(0, removed.size(), removed) == 0;
        return added + (has ? name.substr(removed.size()) : name);
    }
};

bool has(const Checkpoint& base, const std::string& tensor) {
    return base.find(tensor).info != nullptr;
}

template <class Endings>
bool ends_with_any(const std::string& name, const Endings& endings) {
    return std::any_of(std::begin(endings), std::end(endings),
                       [&](std::string_view ending) { return files::ends_with(name, ending); });
}

bool all_there(const Parts& wanted, const Prefix& prefix, const Checkpoint& base) {
    return std::all_of(wanted.begin(), wanted.end(), [&](const TensorPart& part) {
        return has(base, prefix.apply(part.tensor));
    });
}

std::vector<Prefix> prefixes_to_add(const Parts& wanted, const Checkpoint& base) {
    const std::string ending = "." + wanted[0].tensor;
    std::vector<Prefix> found;
    for (const files::StoredTensor& tensor : base.tensors()) {
        const std::string& name = tensor.info->name;
        if (files::ends_with(name, ending)) {
            const Prefix prefix{"", name.substr(0, name.size() - ending.size() + 1)};
            if (all_there(wanted, prefix, base)) {
                found.push_back(prefix);
            }
        }
    }
    return found;
}

std::vector<Prefix> prefixes_to_remove(const Parts& wanted, const Checkpoint& base) {
    const std::string& first = wanted[0].tensor;
    const bool is_weight = files::ends_with(first, kWeight);
    const std::string module = is_weight ? first.substr(0, first.size() - kWeight.size()) : first;
    std::vector<Prefix> found;
    for (std::size_t dot = module.find('.'); dot != module.npos; dot = module.find('.', dot + 1)) {
        const Prefix prefix{module.substr(0, dot + 1), ""};
        const bool all_have = std::all_of(wanted.begin(), wanted.end(), [&](const auto& part) {
            return part.tensor.compare(0, prefix.removed.size(), prefix.removed) == 0;
        });
        if (all_have && all_there(wanted, prefix, base)) {
            found.push_back(prefix);
        }
    }
    return found;
}

// The one prefix with which all are there; nothing if none does.
std::optional<Prefix> prefix_of(const Parts& wanted, const std::string& file,
                                const Checkpoint& base) {
    if (all_there(wanted, {}, base)) {
        return Prefix{};
    }
    std::vector<Prefix> found = prefixes_to_add(wanted, base);
    for (Prefix& prefix : prefixes_to_remove(wanted, base)) {
        found.push_back(std::move(prefix));
    }
    if (found.size() > 1) {
        std::string choices;
        for (std::size_t i = 0; i < std::min(found.size(), kListed); ++i) {
            choices += (i == 0 ? "" : ", ") +
                       (found[i].added.empty() ? "removing '" + printable(found[i].removed) + "'"
                                               : "adding '" + printable(found[i].added) + "'");
        }
        throw Mismatch(base.path(), "",
                       "module names of " + printable(file) +
                           " match this base in more than one way: " + choices +
                           "; say which is meant with nola-edge merge --rename NEW=OLD of the "
                           "Python package, rename the base's tensors, or pick one model part");
    }
    return found.empty() ? std::nullopt : std::optional(found[0]);
}

Parts recorded(const NolaAdapter& adapter) {
    Parts parts;
    for (const Module& module : adapter.modules) {
        const auto part = adapter.config.tensors.find(module.name);
        parts.push_back(part == adapter.config.tensors.end()
                            ? TensorPart{module.name + std::string(kWeight)}
                            : part->second);
    }
    return parts;
}

Parts plain(const NolaAdapter& adapter) {
    Parts parts;
    for (const Module& module : adapter.modules) {
        parts.push_back({module.name + std::string(kWeight)});
    }
    return parts;
}

// Refuses what an adapter records as no part of one tensor.
void check_stored(const NolaAdapter& adapter, const Parts& wanted, const std::string& file,
                  const Checkpoint& base) {
    std::size_t count = 0;
    std::string first;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (wanted[i].tensor.empty()) {
            first = count++ == 0 ? adapter.modules[i].name : first;
        }
    }
    if (count != 0) {
        throw Mismatch(base.path(), first,
                       std::to_string(count) + " modules of " + printable(file) +
                           ", the first is '" + printable(first) +
                           "', have their weights in several tensors of such a base, or with rows "
                           "in another order, as the adapter records; merge in memory (PEFT's "
                           "merge_and_unload), or while it loads: nola_edge.transformers");
    }
}

bool overlap(const TensorPart& one, const TensorPart& other) {
    const bool whole = one.end == 0 || other.end == 0;
    return whole || std::max(one.begin, other.begin) < std::min(one.end, other.end);
}

void check_apart(const NolaAdapter& adapter, const Parts& parts, const std::string& file,
                 const Checkpoint& base) {
    std::vector<std::size_t> order(parts.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto key = [&](std::size_t i) {
        return std::tie(parts[i].tensor, parts[i].begin, parts[i].end);
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
    for (std::size_t i = 1; i < order.size(); ++i) {
        const TensorPart& one = parts[order[i - 1]];
        const TensorPart& other = parts[order[i]];
        if (one.tensor == other.tensor && overlap(one, other)) {
            throw Mismatch(
                base.path(), one.tensor,
                "would be the weight of both " + printable(adapter.modules[order[i - 1]].name) +
                    " and " + printable(adapter.modules[order[i]].name) + " of " + printable(file) +
                    "; say which of its outputs belong to each: nola-edge merge "
                    "--rename NEW=OLD[START:STOP], of the Python package");
        }
    }
}

Mismatch shares_embedding(const std::string& output, const std::string& embedding,
                          const std::string& file, const Checkpoint& base) {
    return {base.path(), output,
            "has no weight of its own here, but shares '" + printable(embedding) +
                "' (tie_word_embeddings), and " + printable(file) +
                " changes the output alone; save the base untied (" + printable(output) +
                ".weight as a tensor of its own, tie_word_embeddings=False) and merge into that"};
}

// What the base has that is called alike; what all weights are, where nothing is.
std::string nearest(const std::string& stored, const Checkpoint& base) {
    const std::size_t end = stored.size() - (files::ends_with(stored, kWeight) ? 7 : 0);
    const std::size_t dot = stored.substr(0, end).rfind('.');
    const std::string last =
        stored.substr(dot == stored.npos ? 0 : dot + 1, end - (dot == stored.npos ? 0 : dot + 1)) +
        std::string(kWeight);
    std::string near;
    std::size_t listed = 0;
    std::size_t weights = 0;
    for (const files::StoredTensor& tensor : base.tensors()) {
        const std::string& name = tensor.info->name;
        weights += files::ends_with(name, kWeight) ? 1 : 0;
        if (files::ends_with(name, last) && listed < kListed) {
            near += (listed++ == 0 ? "" : ", ") + printable(name);
        }
    }
    return near.empty()
               ? "the base has " + std::to_string(weights) + " weights and none with a similar name"
               : "nearest tensors: " + near;
}

Mismatch unmatched(const NolaAdapter& adapter, const Parts& wanted, const std::string& file,
                   const Checkpoint& base) {
    std::vector<std::size_t> missing;
    for (std::size_t i = 0; i < wanted.size(); ++i) {
        if (!has(base, wanted[i].tensor)) {
            missing.push_back(i);
        }
    }
    const std::string& first = adapter.modules[missing[0]].name;
    for (const std::size_t i : missing) {
        const std::string& module = adapter.modules[i].name;
        if (is_output_layer(module + std::string(kWeight)) && !has_output_layer(base)) {
            for (const files::StoredTensor& tensor : base.tensors()) {
                if (is_input_embedding(tensor.info->name)) {
                    return shares_embedding(module, tensor.info->name, file, base);
                }
            }
        }
    }
    const std::string& stored = wanted[missing[0]].tensor;
    const std::string looked_for =
        stored == first + std::string(kWeight) ? "" : ", stored as '" + printable(stored) + "'";
    return {base.path(), first,
            std::to_string(missing.size()) + " of " + std::to_string(wanted.size()) +
                " modules of " + printable(file) + " have no weight here, the first is '" +
                printable(first) + "'" + looked_for + "; " + nearest(stored, base) +
                ". If the base has other names for them, give these: nola-edge merge --rename "
                "NEW=OLD, of the Python package"};
}

}  // namespace

bool is_input_embedding(const std::string& tensor) {
    return ends_with_any(tensor, kInputEmbeddings);
}

bool is_output_layer(const std::string& tensor) {
    return ends_with_any(tensor, kOutputLayers);
}

bool has_output_layer(const Checkpoint& base) {
    return std::any_of(base.tensors().begin(), base.tensors().end(),
                       [](const auto& tensor) { return is_output_layer(tensor.info->name); });
}

Parts match(const NolaAdapter& adapter, const std::string& file, const Checkpoint& base) {
    Parts wanted = recorded(adapter);
    check_stored(adapter, wanted, file, base);
    std::optional<Prefix> prefix = prefix_of(wanted, file, base);
    if (!prefix && !adapter.config.tensors.empty()) {
        // As transformers saves a model on request.
        Parts own = plain(adapter);
        try {
            prefix = prefix_of(own, file, base);
        } catch (const Mismatch&) {  // said of the recorded names below
        }
        wanted = prefix ? std::move(own) : std::move(wanted);
    }
    if (!prefix) {
        throw unmatched(adapter, wanted, file, base);
    }
    for (TensorPart& part : wanted) {
        part.tensor = prefix->apply(part.tensor);
    }
    check_apart(adapter, wanted, file, base);
    return wanted;
}

}  // namespace nola::adapters
