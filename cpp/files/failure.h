// What a file is refused with.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace nola::files {

// A refusal: one printable line that begins with the file's name and the field in it.
class Failure : public std::runtime_error {
public:
    // The first two may be empty. `type` is what the Python package calls such an error.
    Failure(std::string_view file, std::string_view field, std::string_view message,
            const char* type = "FormatError");

    const std::string& file() const { return file_; }
    const std::string& field() const { return field_; }
    // The line without file and field.
    const std::string& message() const { return message_; }
    const char* type() const { return type_; }

private:
    std::string file_;
    std::string field_;
    std::string message_;
    const char* type_;
};

// An adapter cannot be used.
class AdapterFailure : public Failure {
public:
    AdapterFailure(std::string_view file, std::string_view field, std::string_view message)
        : Failure(file, field, message, "AdapterError") {}
};

// A base cannot be used.
class CheckpointFailure : public Failure {
public:
    CheckpointFailure(std::string_view file, std::string_view field, std::string_view message)
        : Failure(file, field, message, "CheckpointError") {}
};

// Adapter and base, or a result and what was expected, do not fit together.
class Mismatch : public Failure {
public:
    Mismatch(std::string_view file, std::string_view field, std::string_view message)
        : Failure(file, field, message, "MismatchError") {}
};

// An input changed while it was read.
class Changed : public Failure {
public:
    Changed(std::string_view file, std::string_view message)
        : Failure(file, "", message, "ChangedError") {}
};

// The output cannot be written where it was to go.
class OutputFailure : public Failure {
public:
    OutputFailure(std::string_view file, std::string_view message)
        : Failure(file, "", message, "OutputError") {}
};

}  // namespace nola::files
