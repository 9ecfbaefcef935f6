#include "layout.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "files/printable.h"

namespace nola::program {

namespace {

constexpr std::size_t kMaxWidth = 100;
constexpr std::size_t kDefaultWidth = 80;
constexpr std::size_t kLongestTerm = 30;

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
        const bool found = text.substr(at, from.size()) == from;
        result += found ? to : text.substr(at, 1);
        at += found ? from.size() : 1;
    }
    return result;
}

bool may_be_broken(char last) {
    return last == '/' || last == '.' || last == '_';
}

// A word that is longer than a line, in parts that are not, as far as it can be broken.
std::vector<std::string> parts_of(const std::string& word, std::size_t columns) {
    if (files::characters(word) <= columns || word.find(kGlue) != word.npos) {
        return {word};
    }
    std::vector<std::string> pieces(1);
    for (const char c : word) {
        pieces.back() += c;
        if (may_be_broken(c)) {
            pieces.emplace_back();
        }
    }
    std::vector<std::string> parts(1);
    for (const std::string& piece : pieces) {
        if (!parts.back().empty() &&
            files::characters(parts.back()) + files::characters(piece) > columns) {
            parts.emplace_back();
        }
        parts.back() += piece;
    }
    return parts;
}

std::vector<std::string> words_of(std::string_view text, std::size_t columns) {
    std::vector<std::string> words;
    std::string word;
    for (const char c : std::string(text) + " ") {
        if (c != ' ' && c != '\n') {
            word += c;
        } else if (!word.empty()) {
            for (std::string& part : parts_of(word, columns)) {
                words.push_back(std::move(part));
            }
            word.clear();
        }
    }
    return words;
}

void write(std::FILE* stream, std::string_view text) {
    const std::size_t spaces = std::min(text.find_first_not_of(' '), text.size());
    if (::isatty(::fileno(stream)) == 0) {
        std::fprintf(stream, "%s\n", replaced(text, kGlue, " ").c_str());
        return;
    }
    const std::size_t room = std::max<std::size_t>(width(), spaces + 22) - spaces - 2;
    std::size_t indent = spaces;
    for (const std::string& line : wrap(text, room)) {
        std::fprintf(stream, "%*s%s\n", static_cast<int>(indent), "", line.c_str());
        indent = spaces + 2;
    }
}

}  // namespace

std::size_t width() {
    const char* stated = std::getenv("COLUMNS");
    const long columns = stated == nullptr ? 0 : std::strtol(stated, nullptr, 10);
    std::size_t found = columns > 0 ? static_cast<std::size_t>(columns) : 0;
    winsize size{};
    if (found == 0 && ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0) {
        found = size.ws_col;
    }
    return std::min(found == 0 ? kDefaultWidth : found, kMaxWidth);
}

std::string padded(std::string_view text, std::size_t columns) {
    const std::size_t used = files::characters(text);
    return std::string(text) + std::string(columns > used ? columns - used : 0, ' ');
}

std::string whole(std::string_view text) {
    return replaced(text, " ", kGlue);
}

std::vector<std::string> wrap(std::string_view text, std::size_t columns) {
    std::vector<std::string> lines(1);
    for (const std::string& word : words_of(text, columns)) {
        std::string& line = lines.back();
        if (!line.empty() && files::characters(line) + 1 + files::characters(word) > columns) {
            lines.push_back(word);
        } else {
            line += (line.empty() ? "" : " ") + word;
        }
    }
    for (std::string& line : lines) {
        line = replaced(line, kGlue, " ");
    }
    return lines;
}

std::string definitions(const std::vector<std::pair<std::string, std::string>>& rows) {
    constexpr std::size_t kIndent = 2;
    constexpr std::size_t kSpacing = 2;
    const std::size_t longest = std::min(kLongestTerm, width() / 3);
    std::size_t column = 0;
    for (const auto& row : rows) {
        column = files::characters(row.first) <= longest
                     ? std::max(column, files::characters(row.first))
                     : column;
    }
    column = (column == 0 ? longest : column) + kSpacing + kIndent;
    std::string text;
    for (const auto& [term, meaning] : rows) {
        std::string head = std::string(kIndent, ' ') + term;
        if (files::characters(head) + kSpacing > column) {
            text += head + "\n";
            head.clear();
        }
        for (const std::string& line : wrap(meaning, std::max(width(), column + 20) - column)) {
            text += padded(head, column) + line + "\n";
            head.clear();
        }
    }
    return text;
}

void say(std::string_view text) {
    write(stdout, text);
}

void warn(std::string_view text) {
    write(stderr, text);
}

void print(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace nola::program
