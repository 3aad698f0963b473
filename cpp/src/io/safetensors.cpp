#include "introspect/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "introspect/core/check.h"
#include "io/atomic_file.h"
#include "io/encodings.h"
#include "io/json_file.h"
#include "io/safetensors_dtype.h"
#include "io/utf8.h"

namespace introspect::io {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "both formats are little-endian and are mapped as they are");

constexpr size_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr JsonRules kHeaderRules{};

struct DtypeWord {
  std::string_view word;
  int64_t bits;
  std::optional<torch::ScalarType> dtype;
};

const DtypeWord kDtypes[] = {{"F64", 64, torch::kFloat64},
                             {"I64", 64, torch::kInt64},
                             {"U64", 64, torch::kUInt64},
                             {"C64", 64, torch::kComplexFloat},
                             {"F32", 32, torch::kFloat32},
                             {"I32", 32, torch::kInt32},
                             {"U32", 32, torch::kUInt32},
                             {"F16", 16, torch::kFloat16},
                             {"BF16", 16, torch::kBFloat16},
                             {"I16", 16, torch::kInt16},
                             {"U16", 16, torch::kUInt16},
                             {"F8_E4M3", 8, torch::kFloat8_e4m3fn},
                             {"F8_E5M2", 8, torch::kFloat8_e5m2},
                             {"F8_E8M0", 8, std::nullopt},
                             {"I8", 8, torch::kInt8},
                             {"U8", 8, torch::kUInt8},
                             {"BOOL", 8, torch::kBool},
                             {"F6_E2M3", 6, std::nullopt},
                             {"F6_E3M2", 6, std::nullopt},
                             {"F4", 4, std::nullopt}};

const DtypeWord* find_dtype(std::string_view word) {
  const auto* found = std::ranges::find(kDtypes, word, &DtypeWord::word);
  return found == std::end(kDtypes) ? nullptr : found;
}

/// The header's entry of one tensor, offsets still counted from the end of the header.
StoredTensor parse_entry(const std::string& name, const json& entry,
                         const std::shared_ptr<const MappedFile>& file, size_t data_size) {
  const auto require = [&](bool ok, const auto&... what) {
    check<IoError>(ok, file->path().string(), ": header of '", name, "': ", what...);
  };
  const auto natural = [&](const json& number, const char* what) {
    require(number.is_number_unsigned(), what, " must be a natural number");
    return number.get<uint64_t>();
  };
  require(entry.is_object() && entry.size() == 3 && entry.contains("dtype") && entry.contains("shape") &&
              entry.contains("data_offsets"),
          "must hold dtype, shape and data_offsets and nothing else");
  require(entry["dtype"].is_string(), "dtype must be a string");
  require(entry["shape"].is_array(), "shape must be an array");
  require(entry["data_offsets"].is_array() && entry["data_offsets"].size() == 2,
          "data_offsets must be two numbers");

  StoredTensor tensor{.name = name, .shape = {}, .dtype = entry["dtype"].get<std::string>(), .file = file};
  const uint64_t begin = natural(entry["data_offsets"][0], "data_offsets");
  const uint64_t end = natural(entry["data_offsets"][1], "data_offsets");
  require(begin <= end && end <= data_size, "data_offsets must rise and end by byte ", data_size, ", got ",
          begin, " to ", end);
  tensor.offset = begin;
  tensor.size = end - begin;

  for (const auto& number : entry["shape"])
    tensor.shape.push_back(static_cast<int64_t>(natural(number, "shape")));
  const auto n_elements = count_elements(tensor.shape);
  require(n_elements.has_value(), "shape has a product that does not fit in 64 bits");
  const auto* dtype = find_dtype(tensor.dtype);
  if (dtype == nullptr) return tensor;  // listed; reading it is an error that names the dtype
  int64_t n_bits = 0;
  const bool fits = !__builtin_mul_overflow(*n_elements, dtype->bits, &n_bits);
  require(fits && n_bits % 8 == 0 && static_cast<uint64_t>(n_bits / 8) == tensor.size, "shape and dtype ",
          tensor.dtype, " must account for the ", tensor.size, " bytes between the data_offsets");
  return tensor;
}

std::map<std::string, std::string> parse_metadata(const json& entry, const std::filesystem::path& path) {
  std::map<std::string, std::string> metadata;
  check<IoError>(entry.is_object(), path.string(), ": header: __metadata__ must be an object");
  for (const auto& [key, value] : entry.items()) {
    check<IoError>(value.is_string(), path.string(), ": header: __metadata__ must hold strings, got ",
                   value.type_name(), " for '", key, "'");
    metadata.emplace(key, value.get<std::string>());
  }
  return metadata;
}

/// One shard's name as the index gives it. Throws IoError if it could point outside the folder.
std::filesystem::path shard_path(const std::filesystem::path& index, const std::string& shard) {
  const std::filesystem::path relative(shard);
  const bool stays = !shard.empty() && relative.is_relative() &&
                     std::ranges::none_of(relative, [](const auto& part) { return part == ".."; });
  check<IoError>(stays, index.string(), ": shards must lie in the index's folder, got '", shard, "'");
  return index.parent_path() / relative;
}

}  // namespace

std::optional<std::string_view> safetensors_word(torch::ScalarType dtype) {
  const auto* found = std::ranges::find(kDtypes, std::optional(dtype), &DtypeWord::dtype);
  return found == std::end(kDtypes) ? std::nullopt : std::optional(found->word);
}

SafetensorsFile::SafetensorsFile(std::filesystem::path path, std::vector<StoredTensor> tensors,
                                 std::map<std::string, std::string> metadata)
    : MappedTensors(std::move(path), std::move(tensors)), metadata_(std::move(metadata)) {}

std::shared_ptr<const SafetensorsFile> SafetensorsFile::open(const std::filesystem::path& path) {
  const auto file = MappedFile::open(path);
  const auto bytes = file->bytes();
  check<IoError>(bytes.size() >= 8, path.string(), ": a safetensors file has at least 8 bytes, got ",
                 bytes.size());
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  check<IoError>(header_size <= std::min(bytes.size() - 8, kMaxHeader), path.string(),
                 ": safetensors header must fit in the file's ", bytes.size(), " bytes and in ", kMaxHeader,
                 ", claims ", header_size);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_size);
  const json header = parse_json_object(text, path, kHeaderRules);

  const size_t data_start = 8 + header_size;
  const size_t data_size = bytes.size() - data_start;
  std::map<std::string, std::string> metadata;
  std::vector<StoredTensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      metadata = parse_metadata(entry, path);
    } else {
      tensors.push_back(parse_entry(name, entry, file, data_size));
    }
  }
  std::ranges::stable_sort(tensors, {}, [](const StoredTensor& t) { return std::pair(t.offset, t.size); });
  size_t end = 0;
  for (auto& tensor : tensors) {
    check<IoError>(tensor.offset == end, path.string(),
                   ": tensors must follow one another without gaps or overlaps, '", tensor.name,
                   "' begins at ", tensor.offset, " where ", end, " was expected");
    end = tensor.offset + tensor.size;
    tensor.offset += data_start;
  }
  check<IoError>(end == data_size, path.string(), ": tensors must fill the file, ", data_size - end,
                 " bytes belong to none");
  return std::shared_ptr<const SafetensorsFile>(
      new SafetensorsFile(path, std::move(tensors), std::move(metadata)));
}

std::shared_ptr<const ShardedSafetensors> ShardedSafetensors::open(const std::filesystem::path& index) {
  const json parsed = read_json_object(index);
  const auto map = parsed.find("weight_map");
  check<IoError>(map != parsed.end() && map->is_object(), index.string(),
                 ": must hold an object 'weight_map'");
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> shards;
  std::vector<StoredTensor> tensors;
  for (const auto& [name, shard] : map->items()) {
    check<IoError>(shard.is_string(), index.string(), ": weight_map must hold file names, got ",
                   shard.type_name(), " for '", name, "'");
    auto& file = shards[shard.get<std::string>()];
    if (file == nullptr) file = SafetensorsFile::open(shard_path(index, shard.get<std::string>()));
    tensors.push_back(file->at(name));
  }
  return std::shared_ptr<const ShardedSafetensors>(new ShardedSafetensors(index, std::move(tensors)));
}

void save_safetensors(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  struct Item {
    const std::string* name;
    const torch::Tensor* tensor;
    const DtypeWord* dtype;
  };
  std::vector<Item> items;
  std::unordered_set<std::string> names;
  for (const auto& [name, tensor] : tensors) {
    check<std::invalid_argument>(
        !name.empty() && name != "__metadata__" && is_utf8(name),
        "save_safetensors: a tensor's name must be UTF-8, not empty and not __metadata__");
    check<std::invalid_argument>(names.insert(name).second, "save_safetensors: names must differ, got '",
                                 name, "' twice");
    check<ShapeError>(tensor.defined() && tensor.layout() == torch::kStrided, "save_safetensors: '", name,
                      "' must be a dense tensor");
    const auto* dtype =
        std::ranges::find(kDtypes, std::optional<torch::ScalarType>(tensor.scalar_type()), &DtypeWord::dtype);
    check<ShapeError>(dtype != std::end(kDtypes), "save_safetensors: '", name,
                      "' must have a dtype of the format, got ", tensor.scalar_type());
    items.push_back({&name, &tensor, dtype});
  }
  std::ranges::stable_sort(items, std::ranges::greater{}, [](const Item& item) { return item.dtype->bits; });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) {
    for (const auto& [key, value] : metadata) {
      check<std::invalid_argument>(is_utf8(key) && is_utf8(value),
                                   "save_safetensors: metadata must be UTF-8");
    }
    header["__metadata__"] = metadata;
  }
  int64_t end = 0;
  for (const auto& item : items) {
    const int64_t begin = end;
    end += static_cast<int64_t>(item.tensor->nbytes());
    header[*item.name] = {
        {"dtype", item.dtype->word}, {"shape", item.tensor->sizes().vec()}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');

  AtomicFile file(path);
  const uint64_t header_size = text.size();
  file.write(&header_size, sizeof(header_size));
  file.write(text.data(), text.size());
  for (const auto& item : items) {
    const auto stored = item.tensor->detach().to(torch::kCPU).contiguous().resolve_conj().resolve_neg();
    file.write(stored.const_data_ptr(), stored.nbytes());
  }
  file.commit();
}

}  // namespace introspect::io
