#pragma once

#include <map>
#include <memory>
#include <string>

#include <ATen/ATen.h>

#include "introspect/models/new_model.h"
#include "introspect/models/with_weights.h"

namespace introspect::testing {

/// One block whose two heads write 1 on token 0 and nothing on token 1, and whose MLP makes logit 0 their OR, as a float64
/// model (Conmy et al. 2023; tests/python/analytic.py says how it does without norms and with a ReLU).
inline std::shared_ptr<const models::Model> or_gate() {
  constexpr double kTiny = 1e-8, kSteep = 1e6;
  models::Config cfg;
  cfg.model_name = cfg.original_architecture = "or_gate";
  cfg.n_layers = 1, cfg.d_model = 3, cfg.n_heads = cfg.n_key_value_heads = 2, cfg.d_head = 1;
  cfg.d_mlp = 1, cfg.d_vocab = 2, cfg.n_ctx = 4;
  cfg.act_fn = "gelu", cfg.gated_mlp = false, cfg.normalization_type = "RMS", cfg.eps = 1;
  cfg.positional_embedding_type = "standard", cfg.attn_scale = 1;
  cfg.qkv_bias = cfg.attn_out_bias = cfg.mlp_bias = true;
  const auto model = models::new_model(cfg, torch::kFloat64);
  std::map<std::string, torch::Tensor> weights;
  for (const auto& [name, tensor] : model->named_weights())
    weights[name] = at::full_like(
        tensor, name.find(".ln") != std::string::npos || name.starts_with("ln") ? 1 / kTiny : 0);
  weights.at("embed.W_E")[1][2] = kTiny;                                 // dimension 2: the token is 1
  weights.at("blocks.0.attn.W_QKV").slice(0, 4).select(1, 2).fill_(-1);  // both heads' values
  weights.at("blocks.0.attn.b_QKV").slice(0, 4).fill_(1);
  weights.at("blocks.0.attn.W_O")[0].fill_(kTiny);  // into dimension 0, which the MLP reads
  weights.at("blocks.0.mlp.W_in")[0][0] = -kSteep;
  weights.at("blocks.0.mlp.b_in").fill_(kSteep);
  weights.at("blocks.0.mlp.W_out")[1][0] = -kTiny / kSteep;  // and 1 - relu(1 - x) into dimension 1
  weights.at("blocks.0.mlp.b_out")[1] = kTiny;
  weights.at("unembed.W_U")[0][1] = 1;
  return models::with_weights(*model, weights);
}

}  // namespace introspect::testing
