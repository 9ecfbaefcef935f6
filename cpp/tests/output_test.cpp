#include "files/output.h"

#include <doctest/doctest.h>
#include <sys/stat.h>

#include "files/content_hash.h"
#include "files/digest.h"
#include "files/failure.h"
#include "files/pieces.h"
#include "files/stop.h"
#include "files/temporary.h"
#include "folder.h"
#include "stored.h"

namespace {

using nola::files::Output;
using nola::test::content_of;
using nola::test::Folder;
using nola::test::refusal;

Output::Plan file_at(const std::string& target, bool force = false) {
    Output::Plan plan;
    plan.target = target;
    plan.force = force;
    plan.obstacle = [](const std::string& path) {
        return content_of(path) == "precious" ? "is precious" : "";
    };
    return plan;
}

}  // namespace

TEST_CASE("output: absent until it is complete, and gone without a trace if it is not") {
    const Folder folder;
    {
        Output output(file_at(folder / "new/deep/file"));
        output.write("", "content");
        CHECK_FALSE(nola::files::is_here(folder / "new/deep/file"));
    }
    CHECK(nola::files::names_in(folder.path()).empty());
    Output output(file_at(folder / "new/deep/file"));
    output.write("", "content");
    output.commit();
    CHECK(content_of(folder / "new/deep/file") == "content");
}

TEST_CASE("output: what is there stays, unless it may be replaced") {
    const Folder folder;
    const std::string place = folder.write("file", "old");
    CHECK(refusal([&] { Output{file_at(place)}; }).find("exists already; choose another") !=
          std::string::npos);
    {
        Output output(file_at(place, true));
        output.write("", "new");
        output.commit();
    }
    CHECK(content_of(place) == "new");
    {
        Output output(file_at(place, true));
        output.write("", "newer");
        folder.write("file", "precious");
        CHECK(refusal([&] { output.commit(); })
                  .find("changed while the output was being written: "
                        "it is precious; it was left alone") != std::string::npos);
    }
    CHECK(content_of(place) == "precious");
    CHECK(refusal([&] { Output{file_at(place, true)}; }).find("so --force does not replace it") !=
          std::string::npos);
    CHECK(nola::files::names_in(folder.path()).size() == 1);
}

TEST_CASE("output: a file that is lost before it is in place publishes nothing") {
    const Folder folder;
    Output output(file_at(folder / "file"));
    output.write("", "content");
    nola::files::remove_whole(output.path());
    CHECK(refusal([&] { output.commit(); }).find("was written, but is now gone") !=
          std::string::npos);
    CHECK_FALSE(nola::files::is_here(folder / "file"));
}

TEST_CASE("output: inputs are never touched") {
    const Folder folder;
    folder.write("input", "data");
    for (const auto& [target, said] : {std::pair(folder / "input", "is an input"),
                                       {folder / "input/new", "not a folder"},
                                       {folder.path(), "contains the input"}}) {
        Output::Plan plan = file_at(target, true);
        plan.inputs = {folder / "input"};
        CHECK(refusal([&] { Output{plan}; }).find(said) != std::string::npos);
    }
}

TEST_CASE("temporaries: those of living processes stay") {
    const Folder folder;
    const std::string target = folder / "file";
    const std::string mine = nola::files::temporary_path(target);
    REQUIRE(::mkdir(mine.c_str(), 0700) == 0);
    std::string dead = mine;
    const std::string process = "." + std::to_string(::getpid()) + ".";
    dead.replace(dead.find(process), process.size(), ".999999999.");
    REQUIRE(::mkdir(dead.c_str(), 0700) == 0);
    nola::files::sweep(target, [](const std::string&) { return true; });
    CHECK(nola::files::is_folder(mine));
    CHECK_FALSE(nola::files::is_folder(dead));
}

TEST_CASE("pieces: the first failure is the one that is thrown") {
    for (const int threads : {1, 4}) {
        CHECK_THROWS_WITH(
            nola::files::for_each_piece(100, threads,
                                        [](std::size_t piece) {
                                            if (piece == 3) {
                                                throw std::runtime_error(std::to_string(piece));
                                            }
                                        }),
            "3");
    }
}

TEST_CASE("hashes: of a file, of a folder, and BLAKE2b of 16 bytes") {
    const Folder folder;
    folder.write("a", "abc");
    const std::string abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    CHECK(nola::files::content_hash(folder / "a").sha256 == abc);
    nola::files::Sha256 lines;
    lines.add(abc + "  ./a\n");
    CHECK(nola::files::content_hash(folder.path()).sha256 == lines.hex());
    nola::files::Blake2b128 digest;
    digest.add("abc");
    CHECK(digest.hex() == "cf4ab791c62b8d2b2109c90275287816");
}

TEST_CASE("paths: as Python's pathlib writes them") {
    using namespace nola::files;
    CHECK(normal("./a//b/./c/") == "a/b/c");
    CHECK(normal("/") == "/");
    CHECK(normal("") == ".");
    CHECK(join("a", "/b") == "/b");
    CHECK(parent_of("a") == ".");
    CHECK(parent_of("/a") == "/");
    CHECK(name_of("a/b/") == "b");
    CHECK(absolute("/a/../../b/./c") == "/b/c");
    CHECK(is_within("/a/b", "/a"));
    CHECK_FALSE(is_within("/ab", "/a"));
}
