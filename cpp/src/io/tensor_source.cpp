#include "introspect/io/tensor_source.h"

#include <string_view>

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/gguf.h"
#include "introspect/io/hf_folder.h"
#include "introspect/io/safetensors.h"

namespace introspect::io {
namespace {

bool starts_with(const MappedFile& file, std::string_view prefix) {
  const auto bytes = file.bytes();
  return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()).starts_with(prefix);
}

}  // namespace

TensorSource::~TensorSource() = default;

torch::Tensor TensorSource::read(const std::string& name, torch::ScalarType dtype) const {
  check_readable(
      name);  // the shape of an encoding whose size is unknown has not been checked against the file's
  auto tensor = torch::empty(shape(name), dtype);
  read_into(name, tensor);
  return tensor;
}

std::shared_ptr<const TensorSource> open_tensors(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return HfFolder::open(path).weights;
  const auto file = MappedFile::open(path);
  const auto extension = path.extension();
  const bool is_pickle =
      extension == ".bin" || extension == ".pt" || extension == ".pth" || extension == ".pkl";
  check<ConfigError>(!is_pickle || starts_with(*file, "GGUF"), path.string(),
                     ": pickles are never loaded, because they run code; convert the file to safetensors");
  if (extension == ".json") return ShardedSafetensors::open(path);
  if (starts_with(*file, "GGUF") || extension == ".gguf") return GgufFile::open(path);
  return SafetensorsFile::open(path);
}

}  // namespace introspect::io
