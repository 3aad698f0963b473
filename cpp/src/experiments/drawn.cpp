#include "experiments/drawn.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::experiments {
namespace {

at::Generator generator_of(const Injection& injection, int64_t block, int64_t token, const char* what) {
  const auto name = concat(injection.seed, "/", what, "/", token, "/", block);
  return at::detail::createCPUGenerator(std::stoull(sha256_hex(name).substr(0, 16), nullptr, 16));
}

}  // namespace

torch::Tensor drawn_noise(const Injection& injection, int64_t block, std::pair<int64_t, int64_t> tokens,
                          int64_t d_model, double length) {
  const auto [first, last] = tokens;
  auto out = at::empty({1, last - first, d_model}, torch::kFloat32);
  for (int64_t token = first; token < last; ++token) {
    const auto drawn = at::randn({d_model}, generator_of(injection, block, token, "noise"), torch::kFloat32);
    out[0][token - first].copy_(drawn.to(torch::kFloat64) * (length / drawn.norm().item<double>()));
  }
  return out;
}

torch::Tensor drawn_dropout(const Injection& injection, int64_t block, std::pair<int64_t, int64_t> tokens,
                            int64_t d_model, double rate) {
  const auto [first, last] = tokens;
  auto out = at::empty({1, last - first, d_model}, torch::kFloat32);
  for (int64_t token = first; token < last; ++token) {
    const auto drawn = at::rand({d_model}, generator_of(injection, block, token, "dropout"), torch::kFloat32);
    out[0][token - first].copy_(drawn.ge(rate).to(torch::kFloat64) / (1.0 - rate));
  }
  return out;
}

}  // namespace introspect::experiments
