#include "introspect/io/mapped_tensors.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/dense.h"
#include "introspect/core/check.h"
#include "io/encodings.h"
#include "io/fingerprint.h"

namespace introspect::io {
namespace {

// Bytes of a tensor that is read and not mapped: a touch of the map brings up to a hundred pages, which then stay.
constexpr size_t kSmall = size_t{1} << 16;

bool is_destination(torch::ScalarType dtype) {
  return dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat16 ||
         dtype == torch::kFloat64;
}

}  // namespace

MappedTensors::MappedTensors(std::filesystem::path path, std::vector<StoredTensor> tensors)
    : path_(std::move(path)), tensors_(std::move(tensors)) {
  index_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) {
    check<IoError>(index_.emplace(tensors_[i].name, i).second, path_.string(), ": holds the tensor '",
                   tensors_[i].name, "' twice");
  }
}

std::vector<std::string> MappedTensors::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& tensor : tensors_) names.push_back(tensor.name);
  return names;
}

bool MappedTensors::has(const std::string& name) const {
  return index_.contains(name);
}

std::vector<int64_t> MappedTensors::shape(const std::string& name) const {
  return at(name).shape;
}

std::string MappedTensors::dtype(const std::string& name) const {
  return at(name).dtype;
}

int64_t MappedTensors::stored_bytes(const std::string& name) const {
  return static_cast<int64_t>(at(name).size);
}

const StoredTensor& MappedTensors::at(const std::string& name) const {
  const auto found = index_.find(name);
  check<IoError>(found != index_.end(), path_.string(), ": has no tensor '", name, "' among its ",
                 tensors_.size());
  return tensors_[found->second];
}

void MappedTensors::check_readable(const std::string& name) const {
  const auto& tensor = at(name);
  check<ConfigError>(
      readable_layout(tensor.dtype).has_value(), path_.string(), ": '", name, "' is stored as ", tensor.dtype,
      "; readable as floats are F64, F32, F16, BF16, F8_E4M3, F8_E5M2, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, "
      "Q3_K, Q4_K, Q5_K, Q6_K and MXFP4");
}

void MappedTensors::read_into(const std::string& name, torch::Tensor& out) const {
  check_readable(name);
  const auto& tensor = at(name);
  if (out.defined() && !out.is_meta())
    check_dense<ShapeError>(out, path_.string(), ": the destination of '", name, "'");
  check<ShapeError>(out.defined() && out.device().is_cpu() && is_destination(out.scalar_type()),
                    path_.string(), ": '", name,
                    "' is read into a CPU tensor of float32, bfloat16, float16 or float64, got ",
                    out.defined() ? out.toString() : "none");
  check<ShapeError>(out.sizes() == torch::IntArrayRef(tensor.shape), path_.string(), ": '", name,
                    "' has the shape ", torch::IntArrayRef(tensor.shape), ", got a destination of ",
                    out.sizes());
  check<ShapeError>(out.is_contiguous(), path_.string(), ": '", name,
                    "' is read into a contiguous tensor, got strides ", out.strides());
  if (out.numel() == 0) return;
  tensor.file->check_unchanged();
  const at::NoGradGuard no_grad;
  if (tensor.size <= kSmall) {
    std::vector<std::byte> copy(tensor.size);
    tensor.file->read(tensor.offset, copy);
    decode(tensor.dtype, copy.data(), out);
  } else {
    decode(tensor.dtype, tensor.file->bytes().data() + tensor.offset, out);
  }
  tensor.file->check_unchanged();
}

void MappedTensors::check_unchanged(const std::string& name) const {
  at(name).file->check_unchanged();
}

std::span<const std::byte> MappedTensors::bytes(const std::string& name) const {
  const auto& tensor = at(name);
  tensor.file->check_unchanged();
  return tensor.file->bytes().subspan(tensor.offset, tensor.size);
}

void MappedTensors::will_need(const std::string& name) const {
  const auto& tensor = at(name);
  tensor.file->will_need(tensor.offset, tensor.size);
}

void MappedTensors::bring(const std::string& name) const {
  const auto& tensor = at(name);
  tensor.file->bring(tensor.offset, tensor.size);
}

void MappedTensors::let_go(const std::string& name) const {
  const auto& tensor = at(name);
  tensor.file->let_go(tensor.offset, tensor.size);
}

torch::Tensor MappedTensors::read_bytes(const std::string& name) const {
  const auto& tensor = at(name);
  tensor.file->check_unchanged();
  auto out = torch::empty({static_cast<int64_t>(tensor.size)}, torch::kByte);
  tensor.file->read(tensor.offset, {static_cast<std::byte*>(out.mutable_data_ptr()), tensor.size});
  tensor.file->check_unchanged();
  return out;
}

std::string MappedTensors::fingerprint() const {
  std::vector<const StoredTensor*> by_name;
  for (const auto& tensor : tensors_) by_name.push_back(&tensor);
  std::ranges::sort(by_name, {},
                    [](const StoredTensor* tensor) -> const std::string& { return tensor->name; });
  std::vector<TensorSample> samples;
  std::vector<std::byte> bytes(by_name.size() * 2 *
                               kSampledBytes);  // read: touched pages of a map stay resident
  for (size_t i = 0; i < by_name.size(); ++i) {
    const auto& tensor = *by_name[i];
    const size_t n = std::min(tensor.size, kSampledBytes);
    const std::span first(bytes.data() + 2 * i * kSampledBytes, n), last(first.data() + kSampledBytes, n);
    tensor.file->read(tensor.offset, first);
    tensor.file->read(tensor.offset + tensor.size - n, last);
    samples.push_back({tensor.name, tensor.dtype, tensor.shape, tensor.size, first, last});
  }
  return fingerprint_of(samples);
}

}  // namespace introspect::io
