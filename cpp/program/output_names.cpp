#include "output_names.h"

#include <algorithm>
#include <utility>

#include "files/failure.h"
#include "files/output.h"
#include "files/paths.h"
#include "files/printable.h"
#include "options.h"

namespace nola::program {

namespace {

using files::OutputFailure;
using files::printable;

constexpr std::string_view kFiles[] = {".safetensors", ".gguf", ".nola", ".bin",
                                       ".pt",          ".pth",  ".json"};

// A path and its extension, with the dot.
std::pair<std::string, std::string> split_extension(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    const std::size_t begin = slash == path.npos ? 0 : slash + 1;
    const std::size_t name = std::min(path.find_first_not_of('.', begin), path.size());
    const std::size_t dot = path.rfind('.');
    return dot == path.npos || dot < name ? std::pair(path, std::string())
                                          : std::pair(path.substr(0, dot), path.substr(dot));
}

bool is_of_file(const std::string& extension) {
    return std::find(std::begin(kFiles), std::end(kFiles), lower(extension)) != std::end(kFiles);
}

// A path as a shell wants it.
std::string quoted(const std::string& path) {
    constexpr std::string_view kPlain =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-";
    std::string text = path;
    if (path.empty() || path.find_first_not_of(kPlain) != path.npos) {
        text = "'";
        for (const char c : path) {
            text += c == '\'' ? "'\"'\"'" : std::string(1, c);
        }
        text += "'";
    }
    return printable(text, 240);
}

void check_written_at_all(const std::string& output) {
    if (output == "-") {
        throw OutputFailure(output,
                            "results cannot be written to standard output, because an output "
                            "appears only when it is complete; write -o NAME");
    }
    if (const std::string special = files::special_file(output); !special.empty()) {
        throw OutputFailure(output, special + ", and never replaced; choose another name");
    }
}

}  // namespace

void check_folder_name(const std::string& output, const std::string& what) {
    check_written_at_all(output);
    const auto [stem, extension] = split_extension(output);
    if (is_of_file(extension) && !files::is_folder(output)) {
        throw OutputFailure(output, what + "; write -o " + quoted(stem));
    }
}

void check_file_name(const std::string& output, std::string_view suffix, const std::string& what,
                     const std::string& name) {
    check_written_at_all(output);
    const std::string advice = what + "; write -o ";
    if (files::is_folder(output) || output.back() == '/') {
        const std::string file = split_extension(files::name_of(name)).first + std::string(suffix);
        throw OutputFailure(output,
                            advice + quoted(output + (output.back() == '/' ? "" : "/") + file));
    }
    const auto [stem, extension] = split_extension(output);
    if (extension != suffix) {
        const bool is_other = is_of_file(extension) || lower(extension) == suffix;
        throw OutputFailure(output,
                            advice + quoted((is_other ? stem : output) + std::string(suffix)));
    }
}

}  // namespace nola::program
