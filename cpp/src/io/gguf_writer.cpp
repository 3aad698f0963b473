#include "introspect/io/gguf_writer.h"

#include <algorithm>
#include <type_traits>

#include "core/dense.h"
#include "introspect/core/check.h"
#include "io/atomic_file.h"
#include "io/gguf_types.h"
#include "io/utf8.h"

namespace introspect::io {
namespace {

template <typename T>
constexpr GgufType type_of() {
  if constexpr (std::is_same_v<T, bool>) return GgufType::kBool;
  if constexpr (std::is_same_v<T, uint32_t>) return GgufType::kUint32;
  if constexpr (std::is_same_v<T, int32_t>) return GgufType::kInt32;
  if constexpr (std::is_same_v<T, uint64_t>) return GgufType::kUint64;
  if constexpr (std::is_same_v<T, int64_t>) return GgufType::kInt64;
  if constexpr (std::is_same_v<T, float>) return GgufType::kFloat32;
  if constexpr (std::is_same_v<T, double>) return GgufType::kFloat64;
  if constexpr (std::is_same_v<T, std::string>) return GgufType::kString;
  return GgufType::kArray;
}

void append_bytes(std::string& out, const void* bytes, size_t size) {
  out.append(static_cast<const char*>(bytes), size);
}

template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
void append(std::string& out, T value) {
  append_bytes(out, &value, sizeof(value));
}

void append(std::string& out, const std::string& text) {
  append(out, uint64_t{text.size()});
  out += text;
}

template <typename T>
void append(std::string& out, const std::vector<T>& values) {
  append(out, type_of<T>());
  append(out, uint64_t{values.size()});
  for (const auto& value : values) append(out, value);
}

size_t padding(size_t size) {
  return (kGgufDefaultAlignment - size % kGgufDefaultAlignment) % kGgufDefaultAlignment;
}

bool is_utf8_value(const GgufWriter::Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return is_utf8(*text);
  if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    return std::ranges::all_of(*texts, [](const std::string& text) { return is_utf8(text); });
  }
  return true;
}

}  // namespace

GgufWriter::GgufWriter(std::string architecture) {
  set("general.architecture", std::move(architecture));
}

void GgufWriter::set(const std::string& key, Value value) {
  check<std::invalid_argument>(!key.empty() && is_utf8(key) && is_utf8_value(value),
                               "GgufWriter::set: keys and text must be UTF-8 and keys not empty");
  check<std::invalid_argument>(key != "general.alignment", "GgufWriter::set: general.alignment is always ",
                               kGgufDefaultAlignment);
  const auto found = std::ranges::find(metadata_, key, &std::pair<std::string, Value>::first);
  if (found == metadata_.end()) {
    metadata_.emplace_back(key, std::move(value));
  } else {
    found->second = std::move(value);
  }
}

void GgufWriter::add(const std::string& name, const torch::Tensor& tensor) {
  check<std::invalid_argument>(!name.empty() && name.size() < kGgufMaxTensorName && is_utf8(name),
                               "GgufWriter::add: a tensor's name must be UTF-8 of 1 to 63 bytes, got ",
                               name.size());
  const auto repeated = std::ranges::find(tensors_, name, &std::pair<std::string, torch::Tensor>::first);
  check<std::invalid_argument>(repeated == tensors_.end(), "GgufWriter::add: names must differ, got '", name,
                               "' twice");
  check_dense<ShapeError>(tensor, "GgufWriter::add: '", name, "'");
  check<ShapeError>(
      tensor.is_floating_point() && tensor.dim() >= 1 && tensor.dim() <= static_cast<int64_t>(kGgufMaxDims),
      "GgufWriter::add: '", name, "' must be a floating tensor of 1 to 4 dimensions, got ", tensor.toString(),
      " of ", tensor.sizes());
  tensors_.emplace_back(name, tensor.detach().to(torch::kCPU, torch::kFloat32).contiguous());
}

void GgufWriter::write(const std::filesystem::path& path) const {
  std::string header;
  append(header, kGgufMagic);
  append(header, uint32_t{3});
  append(header, uint64_t{tensors_.size()});
  append(header, uint64_t{metadata_.size()});
  for (const auto& [key, value] : metadata_) {
    append(header, key);
    std::visit(
        [&]<typename T>(const T& held) {
          append(header, type_of<T>());
          append(header, held);
        },
        value);
  }
  size_t offset = 0;
  for (const auto& [name, tensor] : tensors_) {
    append(header, name);
    append(header, static_cast<uint32_t>(tensor.dim()));
    for (int64_t i = tensor.dim() - 1; i >= 0; --i) append(header, static_cast<uint64_t>(tensor.size(i)));
    append(header, kGgmlFloat32);
    append(header, uint64_t{offset});
    offset += tensor.nbytes() + padding(tensor.nbytes());
  }
  header.append(padding(header.size()), '\0');

  AtomicFile file(path);
  file.write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors_) {
    file.write(tensor.const_data_ptr(), tensor.nbytes());
    file.write_zeros(padding(tensor.nbytes()));
  }
  file.commit();
}

}  // namespace introspect::io
