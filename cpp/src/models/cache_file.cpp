#include "introspect/models/cache_file.h"

#include <charconv>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

namespace introspect::models {
namespace {

using cache::KVCache;

constexpr auto kFormat = "introspect.kv_cache.1";
const std::map<std::string, torch::ScalarType> kDtypes = {
    {"F64", torch::kFloat64}, {"F32", torch::kFloat32}, {"F16", torch::kFloat16}, {"BF16", torch::kBFloat16}};

std::string keys_name(int64_t layer) {
  return concat("keys.", layer);
}
std::string values_name(int64_t layer) {
  return concat("values.", layer);
}

/// A cache's file whose metadata is known to be sound.
struct CacheFile {
  std::shared_ptr<const io::SafetensorsFile> file;
  std::string path, model_hash;
  KVCache::Shape shape;
  int64_t length = 0;

  template <typename... What>
  void require(bool ok, const What&... what) const {
    check<IoError>(ok, "load_cache: ", path, ": ", what...);
  }

  std::string text(const std::string& key) const {
    const auto found = file->metadata().find(key);
    require(found != file->metadata().end(), "metadata must hold '", key, "'");
    return found->second;
  }

  int64_t number(const std::string& key, int64_t least) const {
    const auto word = text(key);
    int64_t out = -1;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), out);
    require(error == std::errc() && end == word.data() + word.size() && out >= least, key,
            " must be a number of at least ", least, ", got '", word, "'");
    return out;
  }

  explicit CacheFile(const std::filesystem::path& where)
      : file(io::SafetensorsFile::open(where)), path(where.string()) {
    const auto format = file->metadata().find("format");
    require(format != file->metadata().end() && format->second == kFormat, "format must be ", kFormat,
            ", got ", format == file->metadata().end() ? "none" : format->second);
    model_hash = text("model_hash");
    shape = {number("n_layers", 1), number("batch", 1), number("n_key_value_heads", 1), number("d_head", 1)};
    length = number("length", 0);
    // A row of one position must be a size, for a cache of no positions has tensors of any other sizes.
    constexpr int64_t kLargestRow = int64_t{1} << 40;
    require(shape.batch <= kLargestRow / shape.n_key_value_heads / shape.d_head,
            "batch * n_key_value_heads * d_head must be at most ", kLargestRow, ", got ", shape.batch, " * ",
            shape.n_key_value_heads, " * ", shape.d_head);
    const auto n_tensors = static_cast<int64_t>(file->names().size());
    // Before anything is multiplied by the number of layers.
    require(n_tensors / 2 == shape.n_layers, "must hold keys and values of ", shape.n_layers, " layers, got ",
            n_tensors, " tensors");
  }

  torch::ScalarType dtype() const {
    const auto word = file->dtype(keys_name(0));
    const auto found = kDtypes.find(word);
    require(found != kDtypes.end(), "keys must be F64, F32, F16 or BF16, got ", word);
    return found->second;
  }

  torch::Tensor read(const std::string& name, torch::ScalarType dtype,
                     const std::vector<int64_t>& sizes) const {
    require(file->shape(name) == sizes, name, " must be ", at::IntArrayRef(sizes), ", got ",
            at::IntArrayRef(file->shape(name)));
    const auto word = file->dtype(name);
    const auto found = kDtypes.find(word);
    require(found != kDtypes.end() && found->second == dtype, name, " must be ", dtype, ", got ", word);
    return file->read(name, dtype);
  }
};

}  // namespace

void save_cache(const KVCache& cache, const std::filesystem::path& path, const std::string& model_hash) {
  const auto& shape = cache.shape();
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    tensors.emplace_back(keys_name(layer), cache.keys(layer).narrow(2, 0, cache.length()));
    tensors.emplace_back(values_name(layer), cache.values(layer).narrow(2, 0, cache.length()));
  }
  if (cache.mask().defined()) tensors.emplace_back("mask", cache.mask().to(torch::kFloat32));
  io::save_safetensors(path, tensors,
                       {{"format", kFormat},
                        {"model_hash", model_hash},
                        {"n_layers", std::to_string(shape.n_layers)},
                        {"batch", std::to_string(shape.batch)},
                        {"n_key_value_heads", std::to_string(shape.n_key_value_heads)},
                        {"d_head", std::to_string(shape.d_head)},
                        {"length", std::to_string(cache.length())}});
}

KVCache load_cache(const std::filesystem::path& path, const std::string& model_hash, torch::Device device) {
  const CacheFile file(path);
  const auto& shape = file.shape;
  check<ConfigError>(model_hash.empty() || file.model_hash.empty() || file.model_hash == model_hash,
                     "load_cache: ", file.path, ": the cache must be of the model ", model_hash,
                     ", it is of ", file.model_hash);
  KVCache cache(shape, file.dtype(), device);
  const std::vector<int64_t> sizes = {shape.batch, shape.n_key_value_heads, file.length, shape.d_head};
  for (int64_t layer = 0; layer < shape.n_layers; ++layer)
    cache.append(layer, file.read(keys_name(layer), cache.dtype(), sizes).to(device),
                 file.read(values_name(layer), cache.dtype(), sizes).to(device));
  torch::Tensor mask;
  if (file.file->has("mask"))
    mask = file.read("mask", torch::kFloat32, {shape.batch, file.length}).to(torch::kBool);
  cache.commit(file.length, mask);
  return cache;
}

}  // namespace introspect::models
