#include "expectation.h"

#include <algorithm>
#include <map>

#include "files/content_hash.h"
#include "files/failure.h"
#include "files/folder.h"
#include "files/printable.h"

namespace nola::merging {

namespace {

using adapters::ExpectedResult;
using files::ContentHash;
using files::printable;
using Hashes = std::map<std::string, std::string>;

constexpr const char* kNotCompared = "the result was not compared with what the adapter expects";
constexpr const char* kOtherBits =
    "the base is not the publisher's to the bit, or was damaged: get it again";
constexpr const char* kOtherFiles =
    "the base's weights are in other files than the publisher's: get the same ones";
constexpr const char* kCarried =
    "only files that are carried over from the base differ, not the weights: get these from where "
    "the publisher has the base";

// The hash of a file, or nothing.
std::string hash_of(const Hashes& files, const std::string& name) {
    const auto found = files.find(name);
    return found == files.end() ? "" : found->second;
}

// The files of a folder that differ, weights first.
std::vector<std::string> different(const Hashes& found, const ExpectedResult& result) {
    std::vector<std::string> names;
    if (!result.files.empty()) {
        Hashes all = found;
        all.insert(result.files.begin(), result.files.end());
        for (const auto& file : all) {
            if (hash_of(found, file.first) != hash_of(result.files, file.first)) {
                names.push_back(file.first);
            }
        }
    }
    std::stable_partition(names.begin(), names.end(), files::is_own_weights);
    return names;
}

std::string said(const std::string& name, const Hashes& found, const ExpectedResult& result) {
    const std::string here = hash_of(found, name);
    const std::string wanted = hash_of(result.files, name);
    if (here.empty()) {
        return printable(name) + " with the SHA-256 " + wanted + " would be missing";
    }
    if (wanted.empty()) {
        return printable(name) + " with the SHA-256 " + here + " is not part of that";
    }
    return printable(name) + " would have the SHA-256 " + here + ", not " + wanted;
}

const char* advice(const std::vector<std::string>& names, const Hashes& found,
                   const ExpectedResult& result) {
    if (!names.empty() && !files::is_own_weights(names[0])) {
        return kCarried;
    }
    const bool alike = std::all_of(names.begin(), names.end(), [&](const std::string& name) {
        return !files::is_own_weights(name) ||
               (found.count(name) != 0 && result.files.count(name) != 0);
    });
    return alike ? kOtherBits : kOtherFiles;
}

// The refusal of a result, by what is nearest to it of what would be right.
files::Mismatch unexpected(const ContentHash& hash, const Expectation& expected,
                           const std::string& output) {
    const Hashes& found = hash.files;
    const auto& nearest =
        *std::min_element(expected.results.begin(), expected.results.end(),
                          [&](const ExpectedResult& one, const ExpectedResult& other) {
                              return different(found, one).size() < different(found, other).size();
                          });
    const std::vector<std::string> names = different(found, nearest);
    const std::string where =
        printable(expected.adapter) + " expects of '" + printable(nearest.name) + "'";
    std::string what =
        "would have the SHA-256 " + hash.sha256 + ", not " + nearest.sha256 + ", which " + where;
    if (!names.empty()) {
        what = "would not be what " + where + ": " + said(names[0], found, nearest);
    }
    if (names.size() > 1) {
        what += ", and " + std::to_string(names.size() - 1) + " more differ";
    }
    return {output, "expected",
            what + "; " + advice(names, found, nearest) +
                "; to have it anyway, pass --no-check-result"};
}

// Adds what the one adapter expects of this base, or refuses a base that it lacks. A damaged one
// has another fingerprint too, if it was damaged where that looks.
void add_results(const WeightedAdapter& adapter, const ExpectedBase& base, Expectation& said) {
    const auto& expected = adapter.adapter.expected;
    const std::string& kind = base.kind;
    const std::string fingerprint = base.fingerprint();
    std::string names;
    bool knows_kind = false;
    said.adapter = adapter.path;
    for (const ExpectedResult& result : expected) {
        names += names.empty() ? "" : ", ";
        names += result.name;
        knows_kind = knows_kind || result.kind == kind;
        if (result.kind == kind && result.base_fingerprint == fingerprint) {
            said.results.push_back(result);
        }
    }
    names = printable(names, 300);
    if (!knows_kind) {
        said.note = "the adapter expects results for " + names + " only: " + kNotCompared;
    } else if (said.results.empty()) {
        throw files::Mismatch(said.adapter, "expected",
                              "is of " + names + ", and this base, with the fingerprint " +
                                  fingerprint +
                                  ", is none of them: another model, another dtype, already "
                                  "merged, or damaged; get the publisher's base, or, to merge "
                                  "into this one, pass --no-check-result");
    }
}

}  // namespace

Expectation expectation(const std::vector<WeightedAdapter>& adapters, const ExpectedBase& base,
                        const std::string& sha256, bool check_result) {
    Expectation said{sha256, {}, "", ""};
    const bool knows = std::any_of(adapters.begin(), adapters.end(), [](const auto& adapter) {
        return !adapter.adapter.expected.empty();
    });
    if (knows && !check_result) {
        said.note = std::string(kNotCompared) + ": --no-check-result (check_result=False)";
    } else if (knows && (adapters.size() > 1 || adapters[0].weight != 1)) {
        said.note = std::string(kNotCompared) +
                    ", which is of a merge of it alone, with weight 1 and without options that "
                    "change the result";
    } else if (knows) {
        add_results(adapters[0], base, said);
    }
    return said;
}

std::string check_result(const Expectation& expected, const std::string& path,
                         const std::string& output, int num_threads) {
    if (expected.sha256.empty() && expected.results.empty()) {
        return "";
    }
    const ContentHash found = files::content_hash(path, num_threads);
    files::check_hash(found.sha256, expected.sha256, output);
    for (const ExpectedResult& result : expected.results) {
        if (result.sha256 == found.sha256) {
            return result.name;
        }
    }
    if (!expected.results.empty()) {
        throw unexpected(found, expected, output);
    }
    return "";
}

}  // namespace nola::merging
