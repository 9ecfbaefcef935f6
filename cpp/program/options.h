// Commands, their options, and what a command line gives for them.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "files/failure.h"

namespace nola::program {

struct Option {
    const char* name;   // "--output"
    const char* also;   // "-o", or another name; empty if there is none
    const char* value;  // what its value is called; empty if it has none
    const char* help;   // empty: refused, as the Python package has it and this program does not
};

class Arguments;

struct Command {
    const char* name;       // one word, or two: "export gguf-lora"
    const char* arguments;  // "BASE ADAPTER...", of which each is needed once
    const char* summary;
    const char* description;  // paragraphs, divided by empty lines
    std::vector<Option> options;
    const char* example;
    int (*run)(const Arguments& arguments);  // returns the exit status
};

// A command line that cannot be understood.
class UsageFailure : public files::Failure {
public:
    // `advice` says in the line, but not with --json, how to call the command.
    UsageFailure(std::string_view option, std::string_view message, std::string_view advice);
    const std::string& line() const { return line_; }

private:
    std::string line_;
};

class Arguments {
public:
    // Throws UsageFailure.
    Arguments(const Command& command, const std::vector<std::string>& words);

    bool wants_help() const { return has("--help"); }
    bool has(std::string_view option) const;
    // The last value that is given, or the name by which an option without one is; empty if there
    // is none.
    std::string value(std::string_view option) const;
    // Throws UsageFailure unless the option is given; `also` is its other name, if it has one.
    void check_given(const std::string& option, const std::string& also) const;
    // A count of threads; 0 where none is given.
    int threads() const;
    const std::vector<std::string>& places() const { return places_; }

private:
    void check_places(const Command& command) const;

    std::string usage_;
    std::string help_;
    std::map<std::string, std::string, std::less<>> values_;
    std::vector<std::string> places_;
};

// Options that several commands have.
inline constexpr Option kThreads = {
    "--threads", "", "INTEGER RANGE",
    "Threads to use; the number does not change any bits.  [default: all processors]  "
    "[1<=x<=65535]"};
inline constexpr Option kJson = {"--json", "", "", "Print JSON, for scripts."};
inline constexpr Option kQuiet = {"--quiet", "-q", "", "Print no summary."};
inline constexpr Option kHelp = {"--help", "-h", "", "Show this message and exit."};

// Text in small letters, as far as it is ASCII.
std::string lower(std::string text);

// A path as commands take it: not empty, and written as Python's pathlib does.
std::string given_path(std::string_view argument, std::string_view path);

std::string help_of(const Command& command);
// How a command is called: "nola hash [OPTIONS] PATH".
std::string usage_of(const Command& command);

}  // namespace nola::program
