#include "introspect/models/orthogonalise.h"

#include <stdexcept>
#include <utility>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/whole_weights.h"
#include "introspect/nn/block.h"

namespace introspect::models {

std::shared_ptr<const Model> orthogonalised(const Model& model, const torch::Tensor& direction_D) {
  const torch::NoGradGuard no_grad;
  check<ShapeError>(
      direction_D.dim() == 1 && direction_D.size(0) == model.cfg().d_model && direction_D.is_floating_point(),
      "orthogonalised: the direction must be [", model.cfg().d_model, "] of a float dtype, got ",
      direction_D.sizes());
  const auto v_D = direction_D.detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  check<std::invalid_argument>(v_D.isfinite().all().item<bool>() && (v_D != 0).any().item<bool>(),
                               "orthogonalised: the direction must be finite and not zero");
  const auto unit_D = v_D / v_D.norm();
  check<ConfigError>(
      !model.cfg().norms_output(), "orthogonalised: ", model.cfg().original_architecture,
      " norms what attention and MLP write, after their weights: no weights write nothing along a "
      "direction there; ablation_everywhere does it in the pass");
  // x [..., D] less its part along the direction.
  const auto without = [&](const torch::Tensor& x) {
    const auto u_D = unit_D.to(x.device());
    const auto wide = x.to(torch::kFloat64);
    return (wide - wide.matmul(u_D).unsqueeze(-1) * u_D).to(x.scalar_type());
  };
  auto weights = whole_weights(model, "orthogonalised");
  weights.W_E = nn::Linear(without(weights.W_E.dense()));
  if (weights.W_pos.defined()) weights.W_pos = without(weights.W_pos);
  for (auto& block : weights.blocks) {
    auto parts = block.parts();
    auto writers = parts.mlp.writers();
    writers.push_back(&parts.attn.weights().O);
    for (auto* linear : writers)
      *linear = nn::Linear(without(linear->dense().t()).t().contiguous(),
                           linear->bias().defined() ? without(linear->bias()) : torch::Tensor());
    block = nn::Block(std::move(parts));
  }
  auto cfg = model.cfg();
  cfg.tie_word_embeddings = false;
  Sha256 hash;
  hash.update(model.hash()).update(" orthogonalised ").update(unit_D.const_data_ptr(), unit_D.nbytes());
  return model.derived(std::move(cfg), std::move(weights), hash.hex());
}

}  // namespace introspect::models
