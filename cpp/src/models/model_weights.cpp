#include "introspect/models/model.h"

#include <unordered_set>

#include "introspect/core/check.h"
#include "introspect/models/whole_weights.h"
#include "introspect/nn/parts.h"

namespace introspect::models {

namespace {

/// Every tensor once, under its name in Model::named_weights.
std::vector<std::pair<std::string, torch::Tensor>> named(const Weights& weights) {
  std::vector<std::pair<std::string, torch::Tensor>> out;
  std::unordered_set<const void*> seen;
  const auto add = [&](std::string name, const torch::Tensor& t) {
    if (t.defined() && seen.insert(t.const_data_ptr()).second) out.emplace_back(std::move(name), t);
  };
  const auto add_linear = [&](const std::string& name, const nn::Linear& linear) {
    if (!linear.is_quantised()) add(name, linear.dense());
  };
  add_linear("embed.W_E", weights.W_E);
  add("pos_embed.W_pos", weights.W_pos);
  for (size_t layer = 0; layer < weights.blocks.size(); ++layer)
    nn::for_each_tensor(weights.blocks[layer].parts(), [&](const std::string& name, const torch::Tensor& t) {
      add(concat("blocks.", layer, ".", name), t);
    });
  nn::Norm::for_each_tensor(weights.ln_final, "ln_final", add);
  add_linear("unembed.W_U", weights.W_U);
  add("unembed.b_U", weights.b_U);
  return out;
}

/// What `count` says of the parts of a block, in sum.
template <typename Count>
int64_t total(const nn::Block& block, const Count& count) {
  int64_t n = 0;
  nn::for_each_part(block.parts(), [&](std::string_view, const auto& part) { n += count(part); });
  return n;
}

/// The same of all weights in memory; an unembedding that is the embedding counts once.
template <typename Count>
int64_t total(const Weights& weights, const Count& count) {
  int64_t n = count(weights.ln_final);
  for (const auto& tensor : {weights.W_pos, weights.b_U})
    if (tensor.defined()) n += count(tensor);
  n += count(weights.W_E);
  if (!weights.W_U.shares_weight(weights.W_E)) n += count(weights.W_U);
  for (const auto& block : weights.blocks) n += total(block, count);
  return n;
}

}  // namespace

std::vector<std::pair<std::string, torch::Tensor>> Model::named_weights(bool skip_quantised) const {
  const auto& w = whole_weights(*this, "named_weights");
  const auto quantised = skip_quantised ? std::vector<std::string>() : quantised_weights();
  check<ConfigError>(quantised.empty(), "model '", cfg_.model_name, "': ", quantised.size(),
                     " weights are held in quantised blocks (",
                     quantised.empty() ? std::string() : quantised.front(),
                     "), which cannot be listed, trained or replaced: load it with weights='dense'");
  return named(w);
}

std::vector<std::string> Model::quantised_weights() const {
  const auto& w = whole_weights(*this, "quantised_weights");
  std::vector<std::string> out;
  if (w.W_E.is_quantised()) out.emplace_back("embed.W_E");
  for (size_t layer = 0; layer < w.blocks.size(); ++layer)
    nn::for_each_part(w.blocks[layer].parts(), [&](std::string_view name, const auto& part) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(part)>, nn::Linear>) {
        const auto dot = name.rfind('.') + 1;
        if (part.is_quantised())
          out.push_back(concat("blocks.", layer, ".", name.substr(0, dot), "W_", name.substr(dot)));
      }
    });
  if (w.W_U.is_quantised() && !w.W_U.shares_weight(w.W_E)) out.emplace_back("unembed.W_U");
  return out;
}

int64_t Model::n_params() const {
  const auto numel = [](const auto& part) { return part.numel(); };
  const int64_t n = total(weights_, numel);
  return keeps_blocks() ? n : n + cfg_.n_layers * total(*block(0), numel);  // they are all of one shape
}

int64_t Model::nbytes() const {
  return total(weights_, [](const auto& part) { return static_cast<int64_t>(part.nbytes()); });
}

}  // namespace introspect::models
