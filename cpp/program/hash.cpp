// `nola hash`.
#include "commands.h"
#include "files/content_hash.h"
#include "files/paths.h"
#include "layout.h"
#include "output.h"

namespace nola::program {

namespace {

void print_json(const std::string& path, const files::ContentHash& found) {
    const JsonOutput json;
    json.set("path", json.text(path));
    json.set("sha256", json.text(found.sha256));
    json.set("bytes", json.number(found.bytes));
    yyjson_mut_val* hashes = json.object();
    for (const auto& [name, sha256] : found.files) {
        // Names are distinct, and there may be many: nothing is looked for.
        yyjson_mut_obj_add(hashes, json.text(name), json.text(sha256));
    }
    json.set("files", hashes);
    json.print();
}

int run(const Arguments& arguments) {
    const int threads = arguments.threads();
    const std::string path = given_path("path", arguments.places()[0]);
    const files::ContentHash found = files::content_hash(path, threads);
    if (arguments.has("--json")) {
        print_json(arguments.places()[0], found);
    } else if (!arguments.has("--quiet")) {
        say(found.sha256);
    }
    return 0;
}

}  // namespace

Command hash_command() {
    return {
        "hash",
        "PATH",
        "Print the SHA-256 of a result.",
        "Print the SHA-256 of PATH, a file or a folder.\n\n"
        "Merging gives the same bits everywhere, so the hash of a result can be published with an "
        "adapter: nola merge --expect HASH refuses any other result before it is in place.\n\n"
        "Of a file it is what sha256sum prints. Of a folder it is the SHA-256 of what sha256sum "
        "prints of its files, sorted by their paths: cd PATH && find -L . -type f -print0 | "
        "LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum",
        {kThreads, kJson, kQuiet},
        "nola merge base adapter.nola -o merged --expect $HASH",
        run,
    };
}

}  // namespace nola::program
