#include "packed.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "few_bits.h"
#include "files/digest.h"
#include "files/failure.h"
#include "files/json.h"
#include "files/printable.h"
#include "files/safetensors.h"
#include "libdeflate.h"

namespace nola::adapters {

namespace {

using Failure = files::AdapterFailure;
using files::SafetensorsFile;
using files::TensorInfo;

constexpr std::string_view kFormat = "nola-packed-2";
constexpr std::string_view kFormat1 = "nola-packed-1";
constexpr std::string_view kAbout = "about";
constexpr std::string_view kCoefficients = "coefficients";
constexpr std::string_view kScales = "scales";
constexpr std::string_view kWhole = "whole.";
constexpr std::size_t kMaxAbout = 4'000'000;
// What cannot be compressed grows by five bytes for each block of it.
constexpr std::size_t kMaxCompressed = kMaxAbout + kMaxAbout / 1000;
constexpr std::size_t kMaxModules = 100'000;
constexpr std::size_t kMaxName = 8192;
// Bytes of whole tensors that are in memory at once; a multiple of every element's.
constexpr std::size_t kPiece = 1U << 16;

bool begins_with(std::string_view text, std::string_view beginning) {
    return text.substr(0, beginning.size()) == beginning;
}

void check_format(const SafetensorsFile& file) {
    const auto format = file.metadata("format");
    if ((format != kFormat && format != kFormat1) || file.find(kAbout) == nullptr) {
        throw Failure(file.input().name(), "",
                      "is not a packed adapter; give one that nola-edge pack made, or the folder "
                      "that holds adapter_config.json");
    }
}

// Calls `each` with the bytes of a tensor, piece by piece.
template <class Each>
void for_each_piece(const SafetensorsFile& file, const TensorInfo& tensor, const Each& each) {
    std::string piece;
    for (std::uint64_t at = tensor.start; at < tensor.stop; at += piece.size()) {
        piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kPiece, tensor.stop - at)));
        file.input().read(at, piece.data(), piece.size());
        each(std::string_view(piece));
    }
}

std::string contents_hash(const SafetensorsFile& file) {
    std::vector<const TensorInfo*> ordered;
    for (const TensorInfo& tensor : file.tensors()) {
        ordered.push_back(&tensor);
    }
    std::sort(ordered.begin(), ordered.end(),
              [](const TensorInfo* a, const TensorInfo* b) { return a->name < b->name; });
    files::Sha256 digest;
    for (const TensorInfo* tensor : ordered) {
        digest.add(tensor->name + " " + tensor->type + " " + files::joined(tensor->shape, "x") +
                   "\n");
        for_each_piece(file, *tensor, [&](std::string_view piece) { digest.add(piece); });
    }
    return digest.hex();
}

// Refuses an adapter with a bit that is not as it was packed.
void check_contents(const SafetensorsFile& file) {
    if (file.metadata("format") == kFormat1) {
        return;
    }
    const std::string found = contents_hash(file);
    const auto stated = file.metadata("sha256");
    if (stated != found) {
        throw Failure(file.input().name(), "sha256",
                      "is " + (stated ? files::printable(*stated, 80) : std::string("None")) +
                          ", but the contents have " + found +
                          ": the file was damaged or edited; get it again");
    }
}

// Decompresses the JSON, and no more than a configuration can be.
std::string inflate(const SafetensorsFile& file) {
    const TensorInfo& about = *file.find(kAbout);
    if (about.bytes() > kMaxCompressed) {
        throw Failure(file.input().name(), kAbout, "is not compressed JSON");
    }
    const std::string packed = file.read(about);
    const std::unique_ptr<libdeflate_decompressor, decltype(&libdeflate_free_decompressor)>
        inflater(libdeflate_alloc_decompressor(), libdeflate_free_decompressor);
    if (inflater == nullptr) {
        throw std::bad_alloc();
    }
    // Compressed JSON is rarely more than a tenth of it, and memory is taken as it is needed.
    for (std::size_t room = std::min(kMaxAbout, 16 * packed.size() + 4096);; room = kMaxAbout) {
        std::string text(room, '\0');
        std::size_t used = 0;
        std::size_t size = 0;
        const libdeflate_result result = libdeflate_zlib_decompress_ex(
            inflater.get(), packed.data(), packed.size(), text.data(), room, &used, &size);
        if (result == LIBDEFLATE_SUCCESS && used == packed.size()) {
            text.resize(size);
            return text;
        }
        if (result != LIBDEFLATE_INSUFFICIENT_SPACE || room == kMaxAbout) {
            throw Failure(file.input().name(), kAbout, "is not compressed JSON");
        }
    }
}

std::vector<Module> parse_modules(yyjson_val* list, std::string_view file) {
    const auto refuse = [&](const std::string& found) -> Failure {
        return {file, "modules", "is " + found + ", not a list of distinct printable names"};
    };
    if (list == nullptr) {
        throw Failure(file, "modules", "is missing");
    }
    if (yyjson_arr_size(list) == 0) {
        throw refuse(files::shown(list));
    }
    if (yyjson_arr_size(list) > kMaxModules) {
        throw Failure(file, "modules", "has more than 100000 members");
    }
    std::vector<Module> modules;
    std::unordered_set<std::string_view> seen;
    files::for_each_item(list, [&](yyjson_val* value) {
        const std::string_view name = files::text_of(value);
        if (!yyjson_is_str(value) || name.size() > kMaxName || !files::is_printable(name) ||
            !seen.insert(name).second) {
            throw refuse("[" + files::shown(value) + "]");
        }
        modules.push_back({std::string(name), {}, {}});
    });
    return modules;
}

NolaAdapter parse_about(std::string_view text, std::string_view file) {
    const files::Json json(text, file);
    if (!yyjson_is_obj(json.root())) {
        throw Failure(file, "", "is not valid JSON: '{' expected at 0");
    }
    yyjson_val* config = yyjson_obj_get(json.root(), "config");
    files::for_each_member(json.root(), [&](std::string_view key, yyjson_val*) {
        if (key != "config" && key != "modules" && key != "expected") {
            throw Failure(file, key, "is not understood");
        }
    });
    if (!yyjson_is_obj(config)) {
        throw Failure(file, "config", "is missing");
    }
    NolaAdapter adapter;
    adapter.modules = parse_modules(yyjson_obj_get(json.root(), "modules"), file);
    adapter.config = parse_config(config, file);
    adapter.expected = parse_expected(yyjson_obj_get(json.root(), "expected"), file);
    return adapter;
}

std::string description(const TensorInfo& tensor) {
    std::string sizes;
    for (const std::uint64_t size : tensor.shape) {
        sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
    }
    return tensor.type + " [" + sizes + "]";
}

// A tensor of exactly so many elements of a type.
const TensorInfo& tensor_of(const SafetensorsFile& file, std::string_view name,
                            std::string_view type, std::uint64_t count) {
    const TensorInfo* found = file.find(name);
    if (found == nullptr || found->type != type || found->shape != std::vector{count}) {
        throw Failure(file.input().name(), name,
                      (found == nullptr ? "is missing" : "is " + description(*found)) +
                          "; configuration and names ask for " + std::string(type) + " [" +
                          std::to_string(count) + "]");
    }
    return *found;
}

// Reads numbers or bytes of a tensor one after the other.
class Reader {
public:
    Reader(const SafetensorsFile& file, const TensorInfo& tensor)
        : input_(file.input()), at_(tensor.start) {}

    std::string bytes(std::size_t count) {
        std::string text = input_.read_text(at_, count);
        at_ += count;
        return text;
    }

    std::vector<float> floats(std::size_t count) {
        std::vector<float> values(count);
        input_.read(at_, values.data(), count * sizeof(float));
        at_ += count * sizeof(float);
        return values;
    }

private:
    const files::Input& input_;
    std::uint64_t at_;
};

void read_exact(const SafetensorsFile& file, NolaAdapter& adapter) {
    const Config& config = adapter.config;
    const std::uint64_t each = config.num_basis_a + config.num_basis_b;
    Reader reader(file, tensor_of(file, kCoefficients, "F32", adapter.modules.size() * each));
    for (Module& module : adapter.modules) {
        module.alpha = reader.floats(static_cast<std::size_t>(config.num_basis_a));
        module.beta = reader.floats(static_cast<std::size_t>(config.num_basis_b));
    }
}

void read_few_bits(const SafetensorsFile& file, NolaAdapter& adapter) {
    const Config& config = adapter.config;
    const int bits = config.coefficient_bits;
    const bool has_first = config.exact_first_alpha;
    const auto count_a = static_cast<std::size_t>(config.num_basis_a);
    const auto count_b = static_cast<std::size_t>(config.num_basis_b);
    const std::size_t size_a = packed_size(count_a, bits);
    const std::size_t size_b = packed_size(count_b, bits);
    const std::uint64_t modules = adapter.modules.size();
    Reader packed(file, tensor_of(file, kCoefficients, "U8", modules * (size_a + size_b)));
    Reader scales(file, tensor_of(file, kScales, "F32", modules * (has_first ? 3 : 2)));
    for (Module& module : adapter.modules) {
        const std::vector<float> scale = scales.floats(has_first ? 3 : 2);
        const float* first = has_first ? &scale[1] : nullptr;
        try {
            module.alpha = unpack(packed.bytes(size_a), count_a, bits, scale[0], first);
            module.beta = unpack(packed.bytes(size_b), count_b, bits, scale.back(), nullptr);
        } catch (const std::invalid_argument& error) {
            throw Failure(file.input().name(), module.name, error.what());
        }
    }
}

// The least bits of an exponent that no finite number has.
bool is_finite(std::string_view type, std::string_view bytes) {
    const std::size_t size = type == "F32" ? 4 : 2;
    const std::uint32_t exponent = type == "F32" ? 0x7F800000 : type == "F16" ? 0x7C00 : 0x7F80;
    for (std::size_t i = 0; i < bytes.size(); i += size) {
        std::uint32_t word = 0;
        std::memcpy(&word, bytes.data() + i, size);
        if ((word & exponent) == exponent) {
            return false;
        }
    }
    return true;
}

void check_whole(const SafetensorsFile& file, const TensorInfo& tensor, std::string_view name,
                 const Config& config) {
    const auto refuse = [&](const char* message) -> Failure {
        return {file.input().name(), tensor.name, message};
    };
    const bool is_bias =
        config.bias != "none" && name.size() >= 5 && name.substr(name.size() - 5) == ".bias";
    const bool announced =
        std::any_of(config.modules_to_save.begin(), config.modules_to_save.end(),
                    [&](const std::string& module) { return is_saved(name, module); });
    if ((!is_bias && !announced) || name == "__metadata__") {
        throw refuse("is neither coefficients nor a tensor that modules_to_save or bias announce");
    }
    if (tensor.type != "F32" && tensor.type != "F16" && tensor.type != "BF16") {
        throw refuse(
            "has another dtype than F32, F16 and BF16; save the adapter again in one of them");
    }
    for_each_piece(file, tensor, [&](std::string_view piece) {
        if (!is_finite(tensor.type, piece)) {
            throw refuse("holds an infinite or NaN value");
        }
    });
}

void check_names(const SafetensorsFile& file) {
    for (const TensorInfo& tensor : file.tensors()) {
        const bool is_own =
            tensor.name == kAbout || tensor.name == kCoefficients || tensor.name == kScales;
        if (!is_own && (!begins_with(tensor.name, kWhole) || !files::is_printable(tensor.name))) {
            throw Failure(file.input().name(), tensor.name, "does not begin with 'whole.'");
        }
    }
}

void read_whole(const SafetensorsFile& file, NolaAdapter& adapter) {
    for (const TensorInfo& tensor : file.tensors()) {
        if (begins_with(tensor.name, kWhole)) {
            const std::string name = tensor.name.substr(kWhole.size());
            check_whole(file, tensor, name, adapter.config);
            adapter.whole_tensors.push_back(name);
        }
    }
}

}  // namespace

NolaAdapter read_packed(const std::shared_ptr<const files::Input>& input) {
    const SafetensorsFile file(input);
    check_format(file);
    check_names(file);
    check_contents(file);
    NolaAdapter adapter = parse_about(inflate(file), input->name());
    adapter.config.coefficient_bits == 0 ? read_exact(file, adapter) : read_few_bits(file, adapter);
    read_whole(file, adapter);
    input->check_unchanged();
    check_adapter(adapter, input->name());
    return adapter;
}

files::Json read_about(const std::shared_ptr<const files::Input>& input) {
    const SafetensorsFile file(input);
    check_format(file);
    return {inflate(file), input->name()};
}

}  // namespace nola::adapters
