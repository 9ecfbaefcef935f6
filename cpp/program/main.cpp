// `nola`: packed adapters merged, or made into LoRA files, on machines without Python.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "commands.h"
#include "files/failure.h"
#include "files/printable.h"
#include "files/stop.h"
#include "layout.h"
#include "nola.h"
#include "output.h"

namespace {

using namespace nola::program;
using nola::files::Failure;
using nola::files::printable;

constexpr int kRefused = 2;

// What the Python package has besides.
constexpr std::string_view kElsewhere[] = {
    "verify", "quantize", "pack", "unpack", "export lora", "convert", "demo", "info", "completion"};
// The one command of two words: the second says in what format.
constexpr std::string_view kExport = "export";

std::vector<Command> commands() {
    return {merge_command(), export_gguf_lora_command(), inspect_command(), hash_command()};
}

std::string export_help() {
    const Command command = export_gguf_lora_command();
    return "Usage: nola export [OPTIONS] COMMAND [ARGS]...\n\n"
           "  Write an adapter in the format of another program.\n\n"
           "Options:\n" +
           definitions({{kHelp.also + std::string(", ") + kHelp.name, kHelp.help}}) +
           "\nCommands:\n" + definitions({{command.name + kExport.size() + 1, command.summary}});
}

std::string general_help() {
    std::vector<std::pair<std::string, std::string>> rows;
    for (const Command& command : commands()) {
        rows.emplace_back(command.name, command.summary);
    }
    return "Usage: nola [OPTIONS] COMMAND [ARGS]...\n\n"
           "  Merge packed NOLA adapters, with the same bits on every machine, and without\n"
           "  Python.\n\n"
           "Options:\n" +
           definitions({{"-V, --version", "Show the version and exit."},
                        {kHelp.also + std::string(", ") + kHelp.name, kHelp.help}}) +
           "\nCommands:\n" + definitions(rows) +
           "\n  Start with: nola merge base adapter.nola -o merged\n";
}

void print_error(const Failure& failure) {
    const JsonOutput json;
    yyjson_mut_val* error = json.object();
    const auto or_null = [&](const std::string& text) {
        return text.empty() ? json.nothing() : json.text(text);
    };
    json.set(error, "type", json.text(failure.type()));
    json.set(error, "message", json.text(failure.message()));
    json.set(error, "file", or_null(failure.file()));
    json.set(error, "field", or_null(failure.field()));
    json.set(error, "value", json.nothing());
    json.set("error", error);
    json.print();
}

bool wants_json(const std::vector<std::string>& words) {
    for (const std::string& word : words) {
        if (word == "--") {
            return false;
        }
        if (word.substr(0, word.find('=')) == "--json") {
            return true;
        }
    }
    return false;
}

int fail(const Failure& failure, std::string_view line, const std::vector<std::string>& words) {
    std::fprintf(stderr, "nola: %s\n", printable(line, 1000).c_str());
    if (wants_json(words)) {
        print_error(failure);
    }
    return kRefused;
}

const Command& command_of(const std::vector<Command>& known, const std::string& name) {
    for (const Command& command : known) {
        if (command.name == name) {
            return command;
        }
    }
    for (const std::string_view other : kElsewhere) {
        if (name == other) {
            std::string message = name;
            message += " is not in this program; use nola-edge ";
            message += name;
            message += " of the Python package";
            throw UsageFailure("", message, "see nola --help");
        }
    }
    const bool is_export = name.substr(0, kExport.size() + 1) == std::string(kExport) + " ";
    const std::string group = is_export ? "nola export" : "nola";
    const std::string word = is_export ? name.substr(kExport.size() + 1) : name;
    const bool is_option = word.size() > 1 && word[0] == '-';
    throw UsageFailure(is_option ? word : "",
                       std::string("No such ") + (is_option ? "option" : "command") + " '" +
                           printable(word) + "'.",
                       (is_option ? "usage: " + group + " [OPTIONS] COMMAND [ARGS]...; " : "") +
                           "see " + group + " --help");
}

bool asks_for_help(const std::string& word) {
    return word == kHelp.name || word == kHelp.also;
}

int run_command(const std::vector<std::string>& words) {
    const bool is_export = !words.empty() && words[0] == kExport;
    const std::size_t count = is_export ? 2 : 1;  // words of the command
    if (words.size() < count) {
        std::fputs((is_export ? export_help() : general_help()).c_str(), stderr);
        return kRefused;
    }
    if (asks_for_help(words[count - 1])) {
        print(is_export ? export_help() : general_help());
        return 0;
    }
    if (words[0] == "-V" || words[0] == "--version") {
        print("nola, version " NOLA_VERSION "\n");
        return 0;
    }
    const std::vector<Command> known = commands();
    const Command& command = command_of(known, is_export ? words[0] + " " + words[1] : words[0]);
    const Arguments arguments(command,
                              {words.begin() + static_cast<std::ptrdiff_t>(count), words.end()});
    if (arguments.wants_help()) {
        print(help_of(command));
        return 0;
    }
    return command.run(arguments);
}

int run(const std::vector<std::string>& words) {
    try {
        return run_command(words);
    } catch (const UsageFailure& failure) {
        return fail(failure, failure.line(), words);
    } catch (const Failure& failure) {
        return fail(failure, failure.what(), words);
    } catch (const std::bad_alloc&) {
        const Failure failure("", "", "there is too little memory", "MemoryError");
        return fail(failure, failure.what(), words);
    } catch (const std::exception& error) {
        const Failure failure("", "", error.what(), "ValueError");
        return fail(failure, failure.what(), words);
    }
}

// A file that is written must not get the number of a stream that was closed.
void open_closed_streams() {
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; ++fd) {
        if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF) {
            // The lowest free number, which is the stream's.
            [[maybe_unused]] const int opened = ::open("/dev/null", O_RDWR);
        }
    }
}

extern "C" void stop(int signal) {
    nola::files::stop_for(signal);
}

// nohup ignores SIGHUP, and it stays so. A reader that has left is an error of writing: whoever can
// no longer be told of something does not end the work.
void handle_signals() {
    ::signal(SIGPIPE, SIG_IGN);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
        struct sigaction before{};
        ::sigaction(number, nullptr, &before);
        if (before.sa_handler == SIG_DFL) {
            struct sigaction action{};
            action.sa_handler = stop;
            ::sigaction(number, &action, nullptr);
        }
    }
}

// Ends as an unhandled signal would, so that shells and supervisors see which it was.
int die_of(int number) {
    ::signal(number, SIG_DFL);
    ::raise(number);
    return 128 + number;
}

bool writes(const std::vector<std::string>& words) {
    return !words.empty() && (words[0] == "merge" || words[0] == kExport);
}

// Even where standard output is full, a result on disk is complete.
int finish(int status, bool writes) {
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) {
        return status;
    }
    pollfd output{STDOUT_FILENO, POLLOUT, 0};
    if (::poll(&output, 1, 0) == 1 && (output.revents & POLLERR) != 0) {
        return status != 0 ? status : die_of(SIGPIPE);  // the reader has seen enough
    }
    std::fprintf(stderr, "nola: standard output cannot be written: %s%s\n", std::strerror(errno),
                 writes ? "; the result itself is complete" : "");
    return writes || status != 0 ? status : kRefused;
}

}  // namespace

int main(int argc, char** argv) {
    open_closed_streams();
    handle_signals();
    const std::vector<std::string> words(argv + 1, argv + argc);
    try {
        const int status = run(words);
        return finish(status, status == 0 && writes(words));
    } catch (const nola::files::Stopped&) {
        const int number = nola::files::stopped_for();
        std::fprintf(stderr, "nola: %s; nothing incomplete was kept\n",
                     number == SIGINT ? "interrupted" : "terminated");
        return die_of(number);
    }
}
