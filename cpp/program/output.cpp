#include "output.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#include "layout.h"

namespace nola::program {

namespace {

template <class T>
T* made(T* value) {
    if (value == nullptr) {
        throw std::bad_alloc();
    }
    return value;
}

}  // namespace

JsonOutput::JsonOutput() : document_(made(yyjson_mut_doc_new(nullptr))) {
    root_ = object();
    yyjson_mut_doc_set_root(document(), root_);
}

yyjson_mut_val* JsonOutput::text(std::string_view value) const {
    return made(yyjson_mut_strncpy(document(), value.data(), value.size()));
}

yyjson_mut_val* JsonOutput::number(std::uint64_t value) const {
    return made(yyjson_mut_uint(document(), value));
}

yyjson_mut_val* JsonOutput::real(double value) const {
    return made(yyjson_mut_real(document(), value));
}

yyjson_mut_val* JsonOutput::truth(bool value) const {
    return made(yyjson_mut_bool(document(), value));
}

yyjson_mut_val* JsonOutput::nothing() const {
    return made(yyjson_mut_null(document()));
}

yyjson_mut_val* JsonOutput::list() const {
    return made(yyjson_mut_arr(document()));
}

yyjson_mut_val* JsonOutput::object() const {
    return made(yyjson_mut_obj(document()));
}

yyjson_mut_val* JsonOutput::copy(yyjson_val* value) const {
    return made(yyjson_val_mut_copy(document(), value));
}

void JsonOutput::set(yyjson_mut_val* object, std::string_view name, yyjson_mut_val* value) const {
    yyjson_mut_obj_put(object, text(name), value);
}

void JsonOutput::print() const {
    std::size_t length = 0;
    const std::unique_ptr<char, decltype(&std::free)> written(
        made(yyjson_mut_write(
            document(), YYJSON_WRITE_PRETTY_TWO_SPACES | YYJSON_WRITE_ESCAPE_UNICODE, &length)),
        std::free);
    program::print({written.get(), length});
    program::print("\n");
}

std::string human_bytes(double count) {
    char text[32];
    if (count < 1000) {
        std::snprintf(text, sizeof text, "%.0f B", count);
        return text;
    }
    for (const char* unit : {"kB", "MB", "GB"}) {
        count /= 1000;
        if (count < 1000) {
            std::snprintf(text, sizeof text, "%.1f %s", count, unit);
            return text;
        }
    }
    std::snprintf(text, sizeof text, "%.1f TB", count / 1000);
    return text;
}

std::string general(double value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*g", digits, value);
    return text;
}

std::string fixed(double value, int decimals) {
    std::string text(512, '\0');  // a double has at most 309 digits before the point
    const int size = std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
    text.resize(static_cast<std::size_t>(size));
    return text;
}

std::string grouped(std::uint64_t value) {
    std::string text = std::to_string(value);
    for (std::size_t end = text.size(); end > 3; end -= 3) {
        text.insert(end - 3, ",");
    }
    return text;
}

}  // namespace nola::program
