#include "adapter.h"

#include "files/failure.h"
#include "files/paths.h"

namespace nola::program {

std::shared_ptr<const files::FileInput> open_adapter(const std::string& path) {
    if (!files::is_here(path)) {
        throw files::AdapterFailure(path, "", "does not exist");
    }
    if (files::is_folder(path)) {
        throw files::AdapterFailure(path, "",
                                    "is a folder, and this program reads packed adapters: pack it "
                                    "with nola-edge pack of the Python package");
    }
    return std::make_shared<files::FileInput>(path.c_str());
}

}  // namespace nola::program
