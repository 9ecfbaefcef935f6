// A folder for the files of a test, which is removed with them.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "files/paths.h"
#include "files/renaming.h"

namespace nola::test {

class Folder {
public:
    Folder() {
        std::string form = "/tmp/nola-tests-XXXXXX";
        path_ = ::mkdtemp(form.data()) == nullptr ? "" : form;
    }
    ~Folder() { files::remove_whole(path_); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;

    std::string operator/(const std::string& name) const { return files::join(path_, name); }
    const std::string& path() const { return path_; }

    std::string write(const std::string& name, const std::string& content) const {
        std::ofstream(*this / name, std::ios::binary) << content;
        return *this / name;
    }

private:
    std::string path_;
};

inline std::string content_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace nola::test
