#include "expected.h"

#include <algorithm>
#include <set>

#include "files/digest.h"
#include "files/failure.h"
#include "files/json.h"
#include "files/printable.h"

namespace nola::adapters {

namespace {

using files::Failure;

constexpr std::size_t kMaxResults = 64;
constexpr std::size_t kMaxFiles = 4096;
constexpr std::size_t kMaxName = 200;
constexpr std::size_t kMaxPath = 1024;
constexpr std::string_view kFolder = "folder";

bool is_hex(std::string_view text, std::size_t count) {
    return text.size() == count && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// Whether a path is that of a file within a folder, as lists of hashes have it.
bool is_path(std::string_view path) {
    if (!files::is_printable(path) || path.find('\\') != path.npos ||
        files::characters(path) > kMaxPath) {
        return false;
    }
    for (std::size_t begin = 0; begin <= path.size();) {
        const std::size_t end = std::min(path.find('/', begin), path.size());
        const std::string_view part = path.substr(begin, end - begin);
        if (part.empty() || part == "." || part == "..") {
            return false;
        }
        begin = end + 1;
    }
    return true;
}

// Checks one entry; every refusal names the field and what it is.
class Reader {
public:
    Reader(yyjson_val* entry, std::string field, std::string_view file)
        : entry_(entry), field_(std::move(field)), file_(file) {}

    ExpectedResult result() const {
        if (!yyjson_is_obj(entry_)) {
            refuse("", entry_, "an object");
        }
        ExpectedResult found;
        found.kind = kind();
        check_fields(found.kind == kFolder);
        found.name = name();
        found.base_fingerprint = digits("base_fingerprint", 32);
        found.sha256 = digits("sha256", 64);
        if (found.kind == kFolder) {
            found.files = files_of();
            if (const std::string whole = files::hash_of_list(found.files); whole != found.sha256) {
                refuse("sha256", get("sha256"), whole + ", which its files have");
            }
        }
        return found;
    }

private:
    yyjson_val* get(const char* name) const { return yyjson_obj_get(entry_, name); }

    [[noreturn]] void refuse(const std::string& field, yyjson_val* value,
                             const std::string& wanted) const {
        const std::string found = value == nullptr ? "None" : files::shown(value, 80);
        throw Failure(file_, field.empty() ? field_ : field_ + "." + field,
                      "is " + found + ", must be " + wanted);
    }

    std::string kind() const {
        yyjson_val* value = get("kind");
        for (const char* known : {"folder", "safetensors", "gguf"}) {
            if (yyjson_equals_str(value, known)) {
                return known;
            }
        }
        refuse("kind", value, "one of folder, safetensors, gguf");
    }

    void check_fields(bool is_folder) const {
        std::set<std::string> wanted = {"name", "kind", "base_fingerprint", "sha256"};
        if (is_folder) {
            wanted.insert("files");
        }
        std::map<std::string, const char*> problems;  // in the order of the fields' names
        for (const std::string& field : wanted) {
            if (get(field.c_str()) == nullptr) {
                problems[field] = "is missing";
            }
        }
        files::for_each_member(entry_, [&](std::string_view field, yyjson_val*) {
            if (wanted.count(std::string(field)) == 0) {
                problems[std::string(field)] = "is not understood";
            }
        });
        if (!problems.empty()) {
            throw Failure(file_, field_ + "." + problems.begin()->first, problems.begin()->second);
        }
    }

    std::string name() const {
        yyjson_val* value = get("name");
        const std::string_view text = yyjson_is_str(value) ? files::text_of(value) : "";
        if (text.empty() || files::characters(text) > kMaxName || !files::is_printable(text)) {
            refuse("name", value, "printable text of 1 to 200 characters");
        }
        return std::string(text);
    }

    std::string digits(const char* field, std::size_t count) const {
        yyjson_val* value = get(field);
        if (!yyjson_is_str(value) || !is_hex(files::text_of(value), count)) {
            refuse(field, value, std::to_string(count) + " hexadecimal digits in small letters");
        }
        return std::string(files::text_of(value));
    }

    std::map<std::string, std::string> files_of() const {
        yyjson_val* value = get("files");
        const std::size_t count = yyjson_obj_size(value);
        if (!yyjson_is_obj(value) || count == 0 || count > kMaxFiles) {
            refuse("files", value, "an object of 1 to 4096 paths");
        }
        std::map<std::string, std::string> found;
        files::for_each_member(value, [&](std::string_view path, yyjson_val* hash) {
            if (!is_path(path)) {
                throw Failure(file_, field_ + ".files",
                              "is '" + files::printable(path, 80) +
                                  "', must be the path of a file in a folder");
            }
            if (!yyjson_is_str(hash) || !is_hex(files::text_of(hash), 64)) {
                refuse("files." + std::string(path), hash,
                       "64 hexadecimal digits in small letters");
            }
            found.emplace(path, files::text_of(hash));
        });
        return found;
    }

    yyjson_val* entry_;
    std::string field_;
    std::string_view file_;
};

}  // namespace

std::vector<ExpectedResult> parse_expected(yyjson_val* list, std::string_view file) {
    if (list != nullptr && !yyjson_is_arr(list)) {
        throw Failure(file, "expected", "is " + files::shown(list, 80) + ", must be a list");
    }
    if (yyjson_arr_size(list) > kMaxResults) {
        throw Failure(file, "", "has more than 64 members");
    }
    std::vector<ExpectedResult> results;
    std::set<std::string> names;
    files::for_each_item(list, [&](yyjson_val* entry) {
        const std::string field = "expected[" + std::to_string(results.size()) + "]";
        results.push_back(Reader(entry, field, file).result());
        const std::string& name = results.back().name;
        if (!names.insert(name).second) {
            throw Failure(file, field + ".name",
                          "is '" + files::printable(name) +
                              "', as that of an entry before it; give each base a name of its own");
        }
    });
    return results;
}

}  // namespace nola::adapters
