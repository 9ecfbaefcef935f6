#include "checkpoint.h"

#include <set>
#include <utility>

#include "failure.h"
#include "json.h"
#include "paths.h"
#include "printable.h"

namespace nola::files {

namespace {

constexpr std::size_t kMaxIndex = 16U << 20;
constexpr const char* kSaveAgain =
    "; save the model again with save_pretrained, which writes shards and index that agree";

bool is_plain_name(std::string_view name) {
    return ends_with(name, kSafetensors) && name[0] != '.' &&
           name.find_first_of(std::string_view("/\\\0", 3)) == name.npos && is_printable(name);
}

std::string quoted(std::string_view text) {
    return "'" + printable(text) + "'";
}

}  // namespace

Checkpoint::Checkpoint(std::string path)
    : path_(std::move(path)), is_folder_(files::is_folder(path_)) {
    if (!is_here(path_)) {
        throw CheckpointFailure(path_, "", "does not exist");
    }
    if (!is_folder_) {
        add_shard(path_);
        return;
    }
    const std::string name = find_weights(path_);
    if (is_index(name)) {
        index_name_ = name;
        open_index();
    } else {
        add_shard(inside(path_, name));
    }
}

std::string Checkpoint::read_index() const {
    const std::string path = inside(path_, index_name_);
    const FileInput file(path.c_str());
    if (file.size() > kMaxIndex) {
        throw CheckpointFailure(
            path, "", "is not an index file of at most " + std::to_string(kMaxIndex) + " bytes");
    }
    return file.read_text(0, static_cast<std::size_t>(file.size()));
}

void Checkpoint::open_index() {
    const std::string file = join(path_, index_name_);
    index_text_ = read_index();
    const Json json(index_text_, file);
    if (!yyjson_is_obj(json.root())) {
        throw Failure(file, "", "is not a JSON object");
    }
    yyjson_val* weight_map = yyjson_obj_get(json.root(), "weight_map");
    if (!yyjson_is_obj(weight_map) || yyjson_obj_size(weight_map) == 0) {
        throw CheckpointFailure(file, "weight_map", "must map tensor names to files");
    }
    std::set<std::string> names;
    for_each_member(weight_map, [&](std::string_view tensor, yyjson_val* shard) {
        if (!yyjson_is_str(shard) || !is_plain_name(text_of(shard))) {
            throw CheckpointFailure(
                file, "weight_map",
                "tensor " + quoted(tensor) + " is said to be in " +
                    (yyjson_is_str(shard) ? quoted(text_of(shard)) : "'" + shown(shard) + "'") +
                    ", which is not the plain name of a .safetensors file");
        }
        names.emplace(text_of(shard));
    });
    for (const std::string& name : names) {
        if (!link_status_of(join(path_, name))) {
            throw CheckpointFailure(file, "weight_map",
                                    "shard " + quoted(name) + " is missing; download it again");
        }
        add_shard(inside(path_, name));
    }
    check_index(weight_map);
}

void Checkpoint::check_index(yyjson_val* weight_map) const {
    const std::string file = join(path_, index_name_);
    std::unordered_map<std::string_view, std::string_view> named;
    for_each_member(weight_map, [&](std::string_view tensor, yyjson_val* shard) {
        named.emplace(tensor, text_of(shard));
    });
    for (const StoredTensor& tensor : tensors_) {
        if (named.find(tensor.info->name) == named.end()) {
            throw CheckpointFailure(file, "weight_map",
                                    "does not name tensor " + quoted(tensor.info->name) + " of '" +
                                        name_of(tensor.input->name()) + "'" + kSaveAgain);
        }
    }
    for_each_member(weight_map, [&](std::string_view tensor, yyjson_val* shard) {
        const StoredTensor found = find(tensor);
        if (found.input == nullptr || name_of(found.input->name()) != text_of(shard)) {
            throw CheckpointFailure(
                file, "weight_map",
                "tensor " + quoted(tensor) + " is not in " + quoted(text_of(shard)) + kSaveAgain);
        }
    });
}

void Checkpoint::add_shard(const std::string& path) {
    inputs_.push_back(std::make_shared<FileInput>(path.c_str()));
    shards_.push_back(std::make_unique<SafetensorsFile>(inputs_.back()));
    const SafetensorsFile& file = *shards_.back();
    for (const TensorInfo& info : file.tensors()) {
        const auto [place, is_new] = places_.emplace(info.name, tensors_.size());
        if (!is_new) {
            const StoredTensor& other = tensors_[place->second];
            throw CheckpointFailure(
                path, info.name, "is also in '" + name_of(other.input->name()) + "'" + kSaveAgain);
        }
        tensors_.push_back({&file.input(), &info});
    }
}

StoredTensor Checkpoint::find(std::string_view name) const {
    const auto place = places_.find(name);
    return place == places_.end() ? StoredTensor{} : tensors_[place->second];
}

const Companions& Checkpoint::companions() {
    if (!companions_ && !is_folder_) {
        companions_.emplace();
    }
    if (!companions_) {
        std::vector<std::string> own = {index_name_};
        for (const auto& shard : shards_) {
            own.push_back(name_of(shard->input().name()));
        }
        companions_ = find_companions(path_, own, [&](const TensorInfo& tensor) {
            const StoredTensor found = find(tensor.name);
            return found.info != nullptr && found.info->shape == tensor.shape;
        });
    }
    return *companions_;
}

std::uint64_t Checkpoint::bytes() const {
    std::uint64_t bytes = 0;
    for (const auto& input : inputs_) {
        bytes += input->size();
    }
    return bytes;
}

void Checkpoint::check_unchanged() const {
    const auto changed = [&](const std::string& name) -> Changed {
        return {join(path_, name),
                "changed while the base was read; run again when nothing writes to it"};
    };
    for (const auto& input : inputs_) {
        input->check_unchanged();
    }
    if (!index_name_.empty() && read_index() != index_text_) {
        throw changed(index_name_);
    }
    if (!companions_) {
        return;
    }
    for (std::size_t i = 0; i < companions_->carried.size(); ++i) {
        const auto status = status_of(join(path_, companions_->carried[i]));
        if (!status || identity_of(*status) != companions_->identities[i]) {
            throw changed(companions_->carried[i]);
        }
    }
}

}  // namespace nola::files
