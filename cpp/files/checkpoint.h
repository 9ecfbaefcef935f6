// A base: one safetensors file, or a Hugging Face folder, sharded or not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "folder.h"
#include "json.h"
#include "safetensors.h"

namespace nola::files {

class Checkpoint {
public:
    // Checks every header. Throws Failure if there is nothing to open, a file is not what it
    // claims, or shards and index disagree.
    explicit Checkpoint(std::string path);

    const std::string& path() const { return path_; }
    bool is_folder() const { return is_folder_; }
    // In the order of their names.
    const std::vector<std::unique_ptr<SafetensorsFile>>& shards() const { return shards_; }
    const FileInput& input(std::size_t shard) const { return *inputs_[shard]; }
    // In the order of the files.
    const std::vector<StoredTensor>& tensors() const { return tensors_; }
    // Null members if there is no such tensor.
    StoredTensor find(std::string_view name) const;
    // Of a sharded folder; empty if there is none.
    const std::string& index_name() const { return index_name_; }
    const std::string& index_text() const { return index_text_; }
    // What stands beside the weights, once it has been asked for.
    const Companions& companions();
    // Bytes of all weight files.
    std::uint64_t bytes() const;

    // Throws Changed if a file is not what it was: weights and index when they were opened, the
    // companions when they were found.
    void check_unchanged() const;

private:
    void open_index();
    void check_index(yyjson_val* weight_map) const;
    void add_shard(const std::string& path);
    std::string read_index() const;

    std::string path_;
    bool is_folder_;
    std::vector<std::shared_ptr<const FileInput>> inputs_;
    std::vector<std::unique_ptr<SafetensorsFile>> shards_;
    std::vector<StoredTensor> tensors_;
    std::unordered_map<std::string_view, std::size_t> places_;
    std::string index_name_;
    std::string index_text_;
    std::optional<Companions> companions_;
};

}  // namespace nola::files
