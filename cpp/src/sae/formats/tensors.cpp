#include "sae/formats/tensors.h"

#include <cstring>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/npz.h"
#include "introspect/io/safetensors.h"

#include "core/excerpt.h"
#include "core/json.h"

namespace introspect::sae::formats {
namespace {

bool is_torch_file(const std::filesystem::path& path) {
  const auto end = path.extension();
  return end == ".pt" || end == ".pth" || end == ".bin" || end == ".pkl";
}

bool is_numpy_file(const std::filesystem::path& path) {
  return path.extension() == ".npz" || path.extension() == ".npy";
}

/// A whole number of a safetensors file, whose reader knows floats only; the header was checked when it was opened.
int64_t integer_in(const std::filesystem::path& path, const std::string& name) {
  const auto file = io::MappedFile::open(path);
  const auto bytes = file->bytes();
  uint64_t size = 0;
  check<IoError>(bytes.size() >= sizeof(size), path.string(), ": is truncated");
  std::memcpy(&size, bytes.data(), sizeof(size));
  check<IoError>(size <= bytes.size() - sizeof(size), path.string(), ": is truncated");
  const auto who = path.string() + ": its header";
  const auto header = parse_json<IoError>(
      {reinterpret_cast<const char*>(bytes.data()) + sizeof(size), static_cast<size_t>(size)}, who);
  const auto entry = JsonField<IoError>(header, who + ": ").at(name);
  const auto dtype = entry.at("dtype").text();
  const auto begin = entry.at("data_offsets").at(size_t{0}).integer(),
             end = entry.at("data_offsets").at(1).integer();
  const bool is_wide = dtype == "I64";
  const int64_t width = is_wide ? 8 : 4;
  check<IoError>((is_wide || dtype == "I32") && end - begin == width && begin >= 0 &&
                     static_cast<uint64_t>(end) <= bytes.size() - sizeof(size) - size,
                 path.string(), ": ", excerpt(name), " must be one whole number, got ", dtype, " in ",
                 end - begin, " bytes");
  const auto* const at = bytes.data() + sizeof(size) + size + begin;
  int64_t wide = 0;
  int32_t narrow = 0;
  if (is_wide)
    std::memcpy(&wide, at, sizeof(wide));
  else
    std::memcpy(&narrow, at, sizeof(narrow));
  return is_wide ? wide : narrow;
}

/// What a dtype's word stands for; float32 for the 8-bit ones.
torch::ScalarType own_dtype(const std::string& word) {
  if (word == "F64") return torch::kFloat64;
  if (word == "F16") return torch::kFloat16;
  if (word == "BF16") return torch::kBFloat16;
  return torch::kFloat32;
}

}  // namespace

Tensors::Tensors(const std::filesystem::path& file) : path_(file) {
  if (is_torch_file(file)) {
    root_ = io::read_torch_zip(file);
    check<IoError>(root_.dict() != nullptr, file.string(), ": must hold a dictionary of tensors by name");
    read_values(root_);
  } else if (is_numpy_file(file)) {
    source_ = io::NpzFile::open(file);
  } else {
    source_ = io::SafetensorsFile::open(file);
  }
}

void Tensors::read_values(const io::TorchValue& values) {
  std::map<std::string, const io::TorchValue*> out;
  for (const auto& [key, value] : *values.dict())
    if (const auto* const name = key.get_if<std::string>()) out[*name] = &value;
  values_ = std::move(out);
}

bool Tensors::descend(const std::string& name) {
  const auto found = values_.find(name);
  if (found == values_.end() || found->second->dict() == nullptr) return false;
  read_values(*found->second);
  taken_.clear();
  return true;
}

bool Tensors::has(const std::string& name) const {
  return source_ ? source_->has(name) : values_.contains(name);
}

std::vector<std::string> Tensors::names() const {
  if (source_) return source_->names();
  std::vector<std::string> out;
  for (const auto& [name, value] : values_) out.push_back(name);
  return out;
}

std::vector<int64_t> Tensors::shape(const std::string& name) const {
  if (source_) return source_->shape(name);
  const auto found = values_.find(name);
  const auto* const tensor = found == values_.end() ? nullptr : found->second->get_if<torch::Tensor>();
  check<IoError>(tensor != nullptr, path_.string(), ": must hold the tensor '", name, "'");
  return tensor->sizes().vec();
}

torch::Tensor Tensors::take(const std::string& name) {
  if (!has(name)) {
    std::string there;
    for (const auto& one : names()) there += (there.empty() ? "" : ", ") + excerpt(one);
    throw IoError(concat(path_.string(), ": must hold the tensor '", name, "'; it has ",
                         there.empty() ? "none" : there));
  }
  taken_.insert(name);
  if (source_) {
    source_->check_readable(name);
    return source_->read(name, own_dtype(source_->dtype(name)));
  }
  const auto* const tensor = values_.at(name)->get_if<torch::Tensor>();
  check<IoError>(tensor && tensor->is_floating_point(), path_.string(), ": '", name,
                 "' must be a floating tensor");
  const bool is_narrow = c10::elementSize(tensor->scalar_type()) < 2;
  return is_narrow ? tensor->to(torch::kFloat32) : *tensor;
}

torch::Tensor Tensors::take_if_there(const std::string& name) {
  return has(name) ? take(name) : torch::Tensor{};
}

std::optional<int64_t> Tensors::take_integer(const std::string& name) {
  if (!has(name)) return std::nullopt;
  taken_.insert(name);
  if (source_) {
    if (const auto* const npz = dynamic_cast<const io::NpzFile*>(source_.get())) {
      const auto value = npz->array(name);
      check<IoError>(value.numel() == 1 && at::isIntegralType(value.scalar_type(), false), path_.string(),
                     ": '", name, "' must be one whole number");
      return value.to(torch::kInt64).item<int64_t>();
    }
    return integer_in(path_, name);
  }
  const auto& value = *values_.at(name);
  if (const auto* const number = value.get_if<int64_t>()) return *number;
  const auto* const tensor = value.get_if<torch::Tensor>();
  check<IoError>(tensor && tensor->numel() == 1 && at::isIntegralType(tensor->scalar_type(), false),
                 path_.string(), ": '", name, "' must be one whole number");
  return tensor->to(torch::kInt64).item<int64_t>();
}

const io::TorchValue* Tensors::take_plain(const std::string& name) {
  const auto found = values_.find(name);
  if (found == values_.end()) return nullptr;
  taken_.insert(name);
  return found->second;
}

void Tensors::check_all_taken() const {
  std::string left;
  for (const auto& name : names())
    if (!taken_.contains(name)) left += (left.empty() ? "" : ", ") + excerpt(name);
  check<IoError>(left.empty(), path_.string(), ": holds more than such a dictionary has: ", left);
}

}  // namespace introspect::sae::formats
