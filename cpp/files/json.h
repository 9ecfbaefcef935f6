// Strict JSON: what readers could understand in two ways, or not at all, is refused.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "yyjson.h"

namespace nola::files {

// A parsed text; its values live as long as it does.
class Json {
public:
    // `text` is UTF-8. Throws Failure, naming `file`, at duplicate keys, NaN, Infinity, numbers
    // beyond a double's range or of more than 308 digits, halves of surrogate pairs, more than 64
    // levels, and where the values would take more than 64 MB.
    Json(std::string_view text, std::string_view file);

    yyjson_val* root() const { return yyjson_doc_get_root(document_.get()); }

private:
    struct Free {
        void operator()(yyjson_doc* document) const { yyjson_doc_free(document); }
    };
    std::unique_ptr<yyjson_doc, Free> document_;
};

// The text of a string value.
std::string_view text_of(yyjson_val* value);

// Calls `each` with every key of an object and its value, in order.
template <class Each>
void for_each_member(yyjson_val* object, const Each& each) {
    yyjson_obj_iter members = yyjson_obj_iter_with(object);
    while (yyjson_val* key = yyjson_obj_iter_next(&members)) {
        each(text_of(key), yyjson_obj_iter_get_val(key));
    }
}

// Calls `each` with every value of a list, in order.
template <class Each>
void for_each_item(yyjson_val* list, const Each& each) {
    yyjson_arr_iter items = yyjson_arr_iter_with(list);
    while (yyjson_val* value = yyjson_arr_iter_next(&items)) {
        each(value);
    }
}

// A value as Python would show it, in at most so many characters, for errors.
std::string shown(yyjson_val* value, std::size_t limit = 120);

}  // namespace nola::files
