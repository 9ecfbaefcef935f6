// What a command prints as JSON.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "yyjson.h"

namespace nola::program {

// A document that is built and printed.
class JsonOutput {
public:
    JsonOutput();

    yyjson_mut_doc* document() const { return document_.get(); }
    yyjson_mut_val* root() const { return root_; }

    // Values that the document keeps a copy of.
    yyjson_mut_val* text(std::string_view value) const;
    yyjson_mut_val* number(std::uint64_t value) const;
    yyjson_mut_val* real(double value) const;
    yyjson_mut_val* truth(bool value) const;
    yyjson_mut_val* nothing() const;
    yyjson_mut_val* list() const;
    yyjson_mut_val* object() const;
    yyjson_mut_val* copy(yyjson_val* value) const;

    // Adds a member to an object, or replaces it.
    void set(yyjson_mut_val* object, std::string_view name, yyjson_mut_val* value) const;
    void set(std::string_view name, yyjson_mut_val* value) const { set(root_, name, value); }

    void print() const;

private:
    struct Free {
        void operator()(yyjson_mut_doc* document) const { yyjson_mut_doc_free(document); }
    };
    std::unique_ptr<yyjson_mut_doc, Free> document_;
    yyjson_mut_val* root_;
};

// Bytes in decimal units: "1.2 MB".
std::string human_bytes(double count);

// A number in so few digits: as C's %g.
std::string general(double value, int digits = 6);

// A number with so many decimals, however large it is.
std::string fixed(double value, int decimals);

// A number with commas between thousands.
std::string grouped(std::uint64_t value);

}  // namespace nola::program
