#include "introspect/models/with_weights.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/whole_weights.h"
#include "introspect/nn/parts.h"

namespace introspect::models {

namespace {

/// Old tensor, by its memory -> the one in its place.
using Replacements = std::unordered_map<const void*, torch::Tensor>;

Replacements match(const Model& model, const std::map<std::string, torch::Tensor>& given) {
  Replacements out;
  for (const auto& [name, old] : model.named_weights(/*skip_quantised=*/true)) {
    const auto found = given.find(name);
    if (found == given.end()) continue;
    const auto& tensor = found->second;
    check<ShapeError>(
        tensor.defined() && tensor.sizes() == old.sizes() && tensor.scalar_type() == old.scalar_type() &&
            tensor.device() == old.device() && tensor.is_contiguous(),
        "with_weights: '", name, "' must be a contiguous ", old.toString(), " ", old.sizes(), ", got ",
        tensor.toString(), " ", tensor.defined() ? tensor.sizes() : at::IntArrayRef{});
    out.emplace(old.const_data_ptr(), tensor);
  }
  if (out.size() == given.size()) return out;
  const auto names = model.named_weights(/*skip_quantised=*/true);
  const auto quantised = model.quantised_weights();
  for (const auto& [name, tensor] : given) {
    check<ConfigError>(std::find(quantised.begin(), quantised.end(), name) == quantised.end(),
                       "with_weights: '", name,
                       "' is held in quantised blocks, which no tensor replaces: load the model with "
                       "weights='dense'");
    check<std::invalid_argument>(
        std::any_of(names.begin(), names.end(), [&](const auto& weight) { return weight.first == name; }),
        "with_weights: the model has no weight '", name, "'; Model::named_weights lists them");
  }
  return out;
}

std::string hash_of(const Model& model, const std::map<std::string, torch::Tensor>& given) {
  if (given.empty()) return model.hash();
  Sha256 hash;
  hash.update(model.hash()).update(" with weights");
  for (const auto& [name, tensor] : given) {
    const auto bytes = tensor.detach().to(torch::kCPU);
    hash.update(concat(" ", name, ":")).update(bytes.const_data_ptr(), bytes.nbytes());
  }
  return hash.hex();
}

}  // namespace

std::shared_ptr<const Model> with_weights(const Model& model,
                                          const std::map<std::string, torch::Tensor>& given) {
  auto weights = whole_weights(model, "with_weights");
  const auto replacements = match(model, given);
  const auto replace = [&](const auto&, torch::Tensor& tensor) {
    if (!tensor.defined()) return;
    if (const auto found = replacements.find(tensor.const_data_ptr()); found != replacements.end())
      tensor = found->second;
  };
  for (auto* tensor : {&weights.W_pos, &weights.b_U}) replace("", *tensor);
  for (auto* linear : {&weights.W_E, &weights.W_U}) nn::Linear::for_each_tensor(*linear, "", replace);
  for (auto& block : weights.blocks) {
    auto parts = block.parts();
    nn::for_each_tensor(parts, replace);
    block = nn::Block(std::move(parts));
  }
  nn::Norm::for_each_tensor(weights.ln_final, "ln_final", replace);
  return model.derived(model.cfg(), std::move(weights), hash_of(model, given));
}

}  // namespace introspect::models
