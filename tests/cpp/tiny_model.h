#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/hooks/activation_cache.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"

namespace introspect::testing {

/// Of float64 models: what is summed in another order differs by some multiples of 1e-15, a mistake by much more.
constexpr double kFloor = 1e-9;

inline torch::Tensor random_tensor(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(seed), at::dtype(torch::kFloat64));
}

/// Four blocks as Qwen2's, of random weights: two query heads a key head, biases, and a window of five keys in blocks 1
/// and 3.
inline std::shared_ptr<const models::Model> tiny_model(uint64_t seed = 0,
                                                       torch::ScalarType dtype = torch::kFloat64,
                                                       int64_t n_layers = 4) {
  constexpr int64_t D = 16, H = 4, G = 2, K = 4, M = 24, V = 40;
  std::map<std::string, torch::Tensor> tensors;
  auto next = 1000 * seed;
  const auto weight = [&](const std::string& name, at::IntArrayRef sizes) {
    tensors[name] = 0.4 * random_tensor(sizes, next++);
  };
  std::string types;
  weight("model.embed_tokens.weight", {V, D});
  weight("lm_head.weight", {V, D});
  tensors["model.norm.weight"] = at::ones({D}, torch::kFloat64);
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    const auto block = "model.layers." + std::to_string(layer) + ".";
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
      tensors[block + norm] = 1 + 0.1 * random_tensor({D}, next++);
    const std::map<std::string, int64_t> projections = {{"q", H * K}, {"k", G * K}, {"v", G * K}};
    for (const auto& [name, size] : projections) {
      weight(block + "self_attn." + name + "_proj.weight", {size, D});
      weight(block + "self_attn." + name + "_proj.bias", {size});
    }
    weight(block + "self_attn.o_proj.weight", {D, H * K});
    weight(block + "mlp.gate_proj.weight", {M, D});
    weight(block + "mlp.up_proj.weight", {M, D});
    weight(block + "mlp.down_proj.weight", {D, M});
    types += std::string(layer > 0 ? ", " : "") +
             (layer % 2 == 1 ? "\"sliding_attention\"" : "\"full_attention\"");
  }
  const std::string config =
      R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 40,
    "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    "use_sliding_window": true, "sliding_window": 5, "num_hidden_layers": )" +
      std::to_string(n_layers) + R"(, "layer_types": [)" + types + "]}";
  return models::Model::from_tensors(config, std::move(tensors), {}, {.dtype = dtype});
}

/// Tokens run by themselves, after the keys and values of those before them.
struct Alone {
  cache::KVCache cache;
  std::shared_ptr<hooks::ActivationCache> seen = std::make_shared<hooks::ActivationCache>();

  /// [positions, layers, ...]
  torch::Tensor at(hooks::Point point, const std::vector<int64_t>& layers,
                   const std::vector<int64_t>& positions) const {
    std::vector<torch::Tensor> of_layers;
    for (const int64_t layer : layers)
      of_layers.push_back(
          seen->at(hooks::Site{point, layer})[0].index_select(0, torch::tensor(positions, torch::kLong)));
    return at::stack(of_layers, 1);
  }

  /// [positions, layers, heads, keys]
  torch::Tensor attention(const std::vector<int64_t>& layers, const std::vector<int64_t>& heads,
                          const std::vector<int64_t>& positions, int64_t first_key, int64_t last_key) const {
    std::vector<torch::Tensor> of_layers;
    for (const int64_t layer : layers) {
      const auto pattern_HTS = seen->at(hooks::Site{hooks::Point::kPattern, layer})[0];
      of_layers.push_back(pattern_HTS.index_select(0, torch::tensor(heads, torch::kLong))
                              .index_select(1, torch::tensor(positions, torch::kLong))
                              .slice(2, first_key, last_key)
                              .transpose(0, 1));
    }
    return at::stack(of_layers, 1);
  }
};

/// What a graph plans, as one plain pass: `interventions` count from the first of `tokens`.
inline Alone run_alone(const models::Model& model, const std::vector<int64_t>& tokens,
                       const std::vector<hooks::Intervention>& interventions = {},
                       const std::optional<cache::KVCache>& before = {}) {
  Alone out{before ? before->fork() : model.make_cache(1)};
  const int64_t start = out.cache.length();
  auto hooks = model.make_hooks();
  for (auto i : interventions) {
    i.first_position += start;
    i.last_position = std::min(i.last_position, static_cast<int64_t>(tokens.size())) + start;
    for (auto& position : i.positions) position += start;
    for (auto& [layer, operands] : i.values)  // what was stored [N, P, W] counts as positions do
      if (const auto& v = operands.v(); i.op == "replace" && v.dim() == 3)
        operands = at::cat({v.new_zeros({v.size(0), start, v.size(2)}), v}, 1);
    hooks.add(i);
  }
  for (const auto& name : hooks.points().names()) hooks.record(name, out.seen);
  models::ForwardOptions options;
  options.cache = &out.cache;
  options.hooks = &hooks;
  options.logits_at = models::LogitsAt::kNone;
  model.forward(torch::tensor(tokens, torch::kLong).unsqueeze(0), options);
  return out;
}

/// The largest difference of two tensors; infinite if they are not of one shape.
inline double distance(const torch::Tensor& a, const torch::Tensor& b) {
  if (!a.defined() || !b.defined() || a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
}

/// The same of all keys and values.
inline double distance(const cache::KVCache& a, const cache::KVCache& b) {
  if (a.shape() != b.shape() || a.length() != b.length()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (int64_t layer = 0; layer < a.shape().n_layers; ++layer)
    most =
        std::max({most, distance(a.keys(layer), b.keys(layer)), distance(a.values(layer), b.values(layer))});
  return most;
}

}  // namespace introspect::testing
