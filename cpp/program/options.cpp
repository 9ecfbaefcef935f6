#include "options.h"

#include <algorithm>
#include <cstdlib>

#include "files/paths.h"
#include "files/printable.h"
#include "layout.h"

namespace nola::program {

namespace {

using Words = std::vector<std::string>;

constexpr long kMaxThreads = 65535;

std::string quoted(std::string_view text) {
    return "'" + files::printable(text) + "'";
}

std::string more_of(const Command& command) {
    return std::string("see nola ") + command.name + " --help";
}

std::string usage_advice(const Command& command) {
    return "usage: " + usage_of(command) + "; " + more_of(command);
}

const Option* find(const Command& command, std::string_view name) {
    for (const Option& option : command.options) {
        if (option.name == name || option.also == name) {
            return &option;
        }
    }
    return name == kHelp.name || name == kHelp.also ? &kHelp : nullptr;
}

const Option& known(const Command& command, const std::string& name) {
    const Option* option = find(command, name);
    if (option == nullptr) {
        throw UsageFailure(name, "No such option " + quoted(name) + ".", usage_advice(command));
    }
    if (option->help[0] == '\0') {
        throw UsageFailure(option->name,
                           std::string(option->name) + " is not in this program; use nola-edge " +
                               command.name + " of the Python package",
                           more_of(command));
    }
    return *option;
}

bool takes_value(const Option& option) {
    return option.value[0] != '\0';
}

// Reads options one after the other, as most programs do: --name value, --name=value, -nvalue.
class Reader {
public:
    Reader(const Command& command, const Words& words,
           std::map<std::string, std::string, std::less<>>& values, Words& places)
        : command_(command), words_(words), values_(values), places_(places) {}

    void read() {
        bool has_ended = false;
        for (; at_ < words_.size(); ++at_) {
            const std::string& word = words_[at_];
            if (has_ended || word.size() < 2 || word[0] != '-') {
                places_.push_back(word);
            } else if (word == "--") {
                has_ended = true;
            } else if (word[1] == '-') {
                read_long(word);
            } else {
                read_short(word);
            }
        }
    }

private:
    void read_long(const std::string& word) {
        const std::size_t sign = word.find('=');
        const Option& option = known(command_, word.substr(0, sign));
        if (!takes_value(option) && sign != word.npos) {
            throw UsageFailure(option.name,
                               "Option " + quoted(option.name) + " does not take a value.", "");
        }
        values_[option.name] = !takes_value(option) ? word
                               : sign != word.npos  ? word.substr(sign + 1)
                                                    : next(word);
    }

    void read_short(const std::string& word) {
        for (std::size_t i = 1; i < word.size(); ++i) {
            const std::string name = {'-', word[i]};
            const Option& option = known(command_, name);
            if (takes_value(option)) {
                values_[option.name] = i + 1 < word.size() ? word.substr(i + 1) : next(name);
                return;
            }
            values_[option.name] = name;
        }
    }

    std::string next(const std::string& name) {
        if (at_ + 1 == words_.size()) {
            throw UsageFailure(name, "Option " + quoted(name) + " requires an argument.", "");
        }
        return words_[++at_];
    }

    const Command& command_;
    const Words& words_;
    std::map<std::string, std::string, std::less<>>& values_;
    Words& places_;
    std::size_t at_ = 0;
};

Words names_of(std::string_view arguments) {
    Words names(1);
    for (const char c : arguments) {
        if (c == ' ') {
            names.emplace_back();
        } else {
            names.back() += c;
        }
    }
    return names;
}

bool is_repeated(const std::string& name) {
    return name.size() > 3 && name.substr(name.size() - 3) == "...";
}

std::string paragraphs(std::string_view text) {
    std::string result;
    while (!text.empty()) {
        const std::size_t end = std::min(text.find("\n\n"), text.size());
        for (const std::string& line : wrap(text.substr(0, end), width() - 2)) {
            result += "  " + line + "\n";
        }
        text.remove_prefix(std::min(end + 2, text.size()));
        result += text.empty() ? "" : "\n";
    }
    return result;
}

}  // namespace

UsageFailure::UsageFailure(std::string_view option, std::string_view message,
                           std::string_view advice)
    : Failure("", option, message, "UsageError"),
      line_(std::string(message) + (advice.empty() ? "" : " (" + std::string(advice) + ")")) {}

Arguments::Arguments(const Command& command, const Words& words)
    : usage_(usage_advice(command)), help_(more_of(command)) {
    Reader(command, words, values_, places_).read();
    if (!wants_help()) {
        check_places(command);
    }
}

void Arguments::check_places(const Command& command) const {
    const Words names = names_of(command.arguments);
    if (places_.size() < names.size()) {
        throw UsageFailure(names[places_.size()],
                           "Missing argument " + quoted(names[places_.size()]) + ".",
                           usage_advice(command));
    }
    if (places_.size() > names.size() && !is_repeated(names.back())) {
        std::string extra;
        for (std::size_t i = names.size(); i < places_.size(); ++i) {
            extra += (extra.empty() ? "" : " ") + places_[i];
        }
        const bool several = places_.size() - names.size() > 1;
        throw UsageFailure("",
                           std::string("Got unexpected extra argument") + (several ? "s" : "") +
                               " (" + files::printable(extra) + ")",
                           help_);
    }
}

bool Arguments::has(std::string_view option) const {
    return values_.find(option) != values_.end();
}

std::string Arguments::value(std::string_view option) const {
    const auto found = values_.find(option);
    return found == values_.end() ? "" : found->second;
}

void Arguments::check_given(const std::string& option, const std::string& also) const {
    if (!has(option)) {
        throw UsageFailure(
            option, "Missing option '" + (also.empty() ? "" : also + "' / '") + option + "'.",
            usage_);
    }
}

int Arguments::threads() const {
    if (!has("--threads")) {
        return 0;
    }
    const std::string text = value("--threads");
    char* end = nullptr;
    const long number = std::strtol(text.c_str(), &end, 10);
    const std::string invalid = "Invalid value for '--threads': ";
    if (text.empty() || *end != '\0') {
        throw UsageFailure("--threads", invalid + quoted(text) + " is not a valid integer range.",
                           help_);
    }
    if (number < 1 || number > kMaxThreads) {
        throw UsageFailure("--threads",
                           invalid + files::printable(text) + " is not in the range 1<=x<=65535.",
                           help_);
    }
    return static_cast<int>(number);
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](char c) {
        return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    return text;
}

std::string given_path(std::string_view argument, std::string_view path) {
    if (path.empty()) {
        throw files::Failure("", argument, "is empty; a path is needed", "ArgumentError");
    }
    return files::normal(path);
}

std::string usage_of(const Command& command) {
    return std::string("nola ") + command.name + " [OPTIONS] " + command.arguments;
}

std::string help_of(const Command& command) {
    std::vector<std::pair<std::string, std::string>> rows;
    const auto add = [&](const Option& option) {
        std::string term = option.also;
        term += (term.empty() ? "" : ", ") + std::string(option.name);
        term += takes_value(option) ? " " + std::string(option.value) : "";
        rows.emplace_back(term, option.help);
    };
    for (const Option& option : command.options) {
        if (option.help[0] != '\0') {
            add(option);
        }
    }
    add(kHelp);
    return "Usage: " + usage_of(command) + "\n\n" + paragraphs(command.description) +
           "\nOptions:\n" + definitions(rows) + "\n  Example: " + command.example + "\n";
}

}  // namespace nola::program
