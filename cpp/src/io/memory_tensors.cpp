#include "introspect/io/memory_tensors.h"

#include <algorithm>

#include "core/dense.h"
#include "introspect/core/check.h"
#include "io/fingerprint.h"
#include "io/safetensors_dtype.h"

namespace introspect::io {

namespace {

std::span<const std::byte> bytes_of(const torch::Tensor& contiguous) {
  return {static_cast<const std::byte*>(contiguous.const_data_ptr()), contiguous.nbytes()};
}

}  // namespace

MemoryTensors::MemoryTensors(std::map<std::string, torch::Tensor> tensors) : tensors_(std::move(tensors)) {
  for (const auto& [name, tensor] : tensors_) {
    check_dense<ShapeError>(tensor, "MemoryTensors: '", name, "'");
    check<ShapeError>(safetensors_word(tensor.scalar_type()).has_value(), "MemoryTensors: '", name,
                      "' must be a tensor of a dtype that safetensors files have, got ", tensor.toString());
  }
}

std::vector<std::string> MemoryTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

bool MemoryTensors::has(const std::string& name) const {
  return tensors_.contains(name);
}

const torch::Tensor& MemoryTensors::at(const std::string& name) const {
  const auto found = tensors_.find(name);
  check<IoError>(found != tensors_.end(), "tensors in memory: no tensor '", name, "' among the ",
                 tensors_.size());
  return found->second;
}

std::vector<int64_t> MemoryTensors::shape(const std::string& name) const {
  return at(name).sizes().vec();
}

std::string MemoryTensors::dtype(const std::string& name) const {
  return std::string(*safetensors_word(at(name).scalar_type()));
}

int64_t MemoryTensors::stored_bytes(const std::string& name) const {
  return static_cast<int64_t>(at(name).nbytes());
}

void MemoryTensors::check_readable(const std::string& name) const {
  check<ConfigError>(at(name).is_floating_point(), "tensors in memory: '", name, "' must hold floats, got ",
                     dtype(name));
}

void MemoryTensors::read_into(const std::string& name, torch::Tensor& out) const {
  check_readable(name);
  const auto& tensor = at(name);
  check<ShapeError>(out.defined() && out.device().is_cpu() && out.is_contiguous() &&
                        out.is_floating_point() && out.sizes() == tensor.sizes(),
                    "tensors in memory: '", name, "' is read into a contiguous CPU tensor of floats ",
                    tensor.sizes(), ", got ", out.defined() ? out.toString() : "none", " ",
                    out.defined() ? out.sizes() : at::IntArrayRef{});
  const at::NoGradGuard no_grad;
  out.copy_(tensor);
}

std::string MemoryTensors::fingerprint() const {
  const at::NoGradGuard no_grad;
  std::vector<TensorSample> samples;
  std::vector<torch::Tensor> ends;  // keeps the sampled bytes alive
  std::vector<std::string> words;
  ends.reserve(2 * tensors_.size());
  words.reserve(tensors_.size());
  for (const auto& [name, tensor] : tensors_) {
    const auto flat = tensor.detach().reshape({-1});
    const auto n = std::min<int64_t>(flat.numel(), static_cast<int64_t>(kSampledBytes / flat.element_size()));
    ends.push_back(flat.narrow(0, 0, n).cpu().contiguous());
    const auto first = bytes_of(ends.back());
    ends.push_back(flat.narrow(0, flat.numel() - n, n).cpu().contiguous());
    words.push_back(dtype(name));
    samples.push_back({name,
                       words.back(),
                       {tensor.sizes().data(), tensor.sizes().size()},
                       flat.nbytes(),
                       first,
                       bytes_of(ends.back())});
  }
  return fingerprint_of(samples);
}

}  // namespace introspect::io
