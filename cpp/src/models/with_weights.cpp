#include "introspect/models/with_weights.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::models {

namespace {

/// Old tensor, by its memory -> the one in its place.
using Replacements = std::unordered_map<const void*, torch::Tensor>;

Replacements match(const Model& model, const std::map<std::string, torch::Tensor>& given) {
  Replacements out;
  for (const auto& [name, old] : model.named_weights()) {
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
  const auto names = model.named_weights();
  for (const auto& [name, tensor] : given)
    check<std::invalid_argument>(
        std::any_of(names.begin(), names.end(), [&](const auto& weight) { return weight.first == name; }),
        "with_weights: the model has no weight '", name, "'; Model::named_weights lists them");
  return out;
}

class Replacer {
 public:
  explicit Replacer(const Replacements& replacements) : replacements_(replacements) {}

  void operator()(torch::Tensor& tensor) const {
    if (!tensor.defined()) return;
    if (const auto found = replacements_.find(tensor.const_data_ptr()); found != replacements_.end())
      tensor = found->second;
  }

  void operator()(nn::Norm& norm) const {
    (*this)(norm.weight);
    (*this)(norm.bias);
  }

  void operator()(std::optional<nn::Norm>& norm) const {
    if (norm) (*this)(*norm);
  }

  void operator()(nn::Block& block) const {
    auto parts = block.parts();
    auto attn = parts.attn.weights();
    auto options = parts.attn.options();
    auto mlp = parts.mlp.weights();
    for (auto* tensor :
         {&attn.W_QKV, &attn.b_QKV, &attn.W_O, &attn.b_O, &mlp.W_in, &mlp.b_in, &mlp.W_out, &mlp.b_out})
      (*this)(*tensor);
    for (auto* norm : {&options.q_norm, &options.k_norm, &parts.ln1_post, &parts.ln2_post}) (*this)(*norm);
    (*this)(parts.ln1);
    (*this)(parts.ln2);
    parts.attn = nn::Attention(std::move(attn), std::move(options));
    parts.mlp = nn::Mlp(std::move(mlp), parts.mlp.activation());
    block = nn::Block(std::move(parts));
  }

 private:
  const Replacements& replacements_;
};

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
  const auto replacements = match(model, given);
  const Replacer replace(replacements);
  auto weights = model.weights();
  for (auto* tensor : {&weights.W_E, &weights.W_pos, &weights.W_U, &weights.b_U}) replace(*tensor);
  for (auto& block : weights.blocks) replace(block);
  replace(weights.ln_final);
  return std::make_shared<const Model>(
      model.cfg(), std::move(weights),
      model.has_tokenizer() ? std::optional(model.tokenizer()) : std::nullopt,
      model.has_chat_template() ? std::optional(model.chat_template()) : std::nullopt, hash_of(model, given));
}

}  // namespace introspect::models
