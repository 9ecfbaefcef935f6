#include "json.h"

#include <cstdlib>
#include <unordered_set>

#include "failure.h"
#include "printable.h"

namespace nola::files {

namespace {

// Real files have ten levels, and some readers stop at 128.
constexpr int kMaxDepth = 64;
// An integer of so many digits is within a double's range.
constexpr std::size_t kMaxDigits = 308;
constexpr std::size_t kMaxMemory = 64U << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

// Memory for one text's values, no more than so much at once. It need not outlive the parsing: what
// is given back later is not counted.
struct Budget {
    std::size_t left = kMaxMemory;

    static void* take(void* budget, std::size_t size) {
        return static_cast<Budget*>(budget)->allows(size) ? std::malloc(size) : nullptr;
    }
    static void* change(void* budget, void* memory, std::size_t old_size, std::size_t size) {
        const bool allowed =
            size <= old_size || static_cast<Budget*>(budget)->allows(size - old_size);
        return allowed ? std::realloc(memory, size) : nullptr;
    }
    static void give_back(void* /*budget*/, void* memory) { std::free(memory); }

private:
    bool allows(std::size_t size) {
        const bool allowed = size <= left;
        left -= allowed ? size : 0;
        return allowed;
    }
};

void check_number(yyjson_val* value, std::string_view file) {
    const std::string_view digits = {yyjson_get_raw(value), yyjson_get_len(value)};
    if (digits.find_first_of(".eE") != digits.npos) {
        throw Failure(
            file, "",
            printable(digits) +
                " is not a JSON number, nor is any beyond 1.8e308; correct it or leave it out");
    }
    if (digits.size() - (digits[0] == '-' ? 1 : 0) > kMaxDigits) {
        throw Failure(file, "", "is a number of more than 308 digits; correct it or leave it out");
    }
}

void check(yyjson_val* value, std::string_view file, int depth) {
    if (yyjson_is_ctn(value) && depth == kMaxDepth) {
        throw Failure(file, "", "JSON is nested too deeply, more than 64 levels");
    }
    if (yyjson_is_raw(value)) {
        check_number(value, file);
    }
    if (yyjson_is_arr(value)) {
        for_each_item(value, [&](yyjson_val* item) { check(item, file, depth + 1); });
    }
    if (yyjson_is_obj(value)) {
        std::unordered_set<std::string_view> seen;
        for_each_member(value, [&](std::string_view key, yyjson_val* member) {
            if (!seen.insert(key).second) {
                throw Failure(file, "", "duplicate key '" + printable(key) + "' in JSON");
            }
            check(member, file, depth + 1);
        });
    }
}

}  // namespace

Json::Json(std::string_view text, std::string_view file) {
    if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
        throw Failure(file, "",
                      "is not valid JSON: begins with a byte order mark; save it without one");
    }
    Budget budget;
    const yyjson_alc memory = {Budget::take, Budget::change, Budget::give_back, &budget};
    yyjson_read_err error{};
    // Without the flag for it, the text is copied and not changed.
    document_.reset(yyjson_read_opts(const_cast<char*>(text.data()), text.size(),
                                     YYJSON_READ_BIGNUM_AS_RAW, &memory, &error));
    if (document_ == nullptr && error.code == YYJSON_READ_ERROR_MEMORY_ALLOCATION) {
        throw Failure(file, "", "has more JSON values than 64 MB can hold");
    }
    if (document_ == nullptr) {
        throw Failure(file, "",
                      std::string("is not valid JSON: ") + error.msg + " (byte " +
                          std::to_string(error.pos) + ")");
    }
    check(root(), file, 0);
}

std::string_view text_of(yyjson_val* value) {
    return {yyjson_get_str(value), yyjson_get_len(value)};
}

std::string shown(yyjson_val* value, std::size_t limit) {
    if (value == nullptr || yyjson_is_null(value)) {
        return "None";
    }
    if (yyjson_is_bool(value)) {
        return yyjson_get_bool(value) ? "True" : "False";
    }
    if (yyjson_is_str(value)) {
        return "'" + printable(text_of(value), limit) + "'";
    }
    char* text = yyjson_val_write(value, YYJSON_WRITE_NOFLAG, nullptr);
    std::string result = text == nullptr ? "too much" : printable(text, limit);
    std::free(text);
    return result;
}

}  // namespace nola::files
