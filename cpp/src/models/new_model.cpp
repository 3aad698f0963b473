#include "introspect/models/new_model.h"

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/config_json.h"
#include "introspect/ops/rotary.h"

#include "models/attention_options.h"

namespace introspect::models {

namespace {

using hooks::Point;

class Builder {
 public:
  Builder(const Config& cfg, const torch::TensorOptions& options) : cfg_(cfg), options_(options) {}

  Weights weights() const {
    const int64_t D = cfg_.d_model, V = cfg_.d_vocab;
    Weights w;
    w.W_E = zeros({V, D});
    if (cfg_.positional_embedding_type == "standard") w.W_pos = zeros({cfg_.n_ctx, D});
    for (int64_t layer = 0; layer < cfg_.n_layers; ++layer) w.blocks.push_back(block(layer));
    w.ln_final = norm(D, Point::kLnFinalScale, Point::kLnFinalNormalized);
    w.W_U = cfg_.tie_word_embeddings ? w.W_E : zeros({V, D});
    w.b_U = zeros({V});
    if (cfg_.positional_embedding_type != "rotary") return w;
    w.rotary_frequencies =
        ops::rotary_frequencies(cfg_.rotary_dim, cfg_.rotary_base, cfg_.rotary_scaling).to(options_.device());
    if (cfg_.rotary_base_local > 0)
      w.rotary_frequencies_local =
          ops::rotary_frequencies(cfg_.rotary_dim, cfg_.rotary_base_local, {}).to(options_.device());
    return w;
  }

 private:
  torch::Tensor zeros(at::IntArrayRef sizes, bool wanted = true) const {
    return wanted ? at::zeros(sizes, options_) : torch::Tensor{};
  }

  nn::Norm norm(int64_t width, Point scale, Point normalized) const {
    nn::Norm out;
    out.eps = cfg_.eps;
    out.scale_point = scale;
    out.normalized_point = normalized;
    out.weight = at::ones({width}, options_);
    if (cfg_.norm_weight_offset) {
      out.kind = nn::NormKind::kGemmaRms;  // whose weight is held with the one added, in float32
      out.weight = out.weight.to(torch::kFloat32);
    } else if (cfg_.normalization_type == "LN") {
      out.kind = nn::NormKind::kLayer;
      out.bias = zeros({width});
    }
    return out;
  }

  std::optional<nn::Norm> norm_if(bool wanted, int64_t width, Point scale, Point normalized) const {
    return wanted ? std::optional(norm(width, scale, normalized)) : std::nullopt;
  }

  nn::Block block(int64_t layer) const {
    const int64_t D = cfg_.d_model, K = cfg_.d_head, M = cfg_.d_mlp;
    const int64_t HK = cfg_.n_heads * K, QKV = HK + 2 * cfg_.n_key_value_heads * K;
    const bool both = cfg_.use_normalization_before_and_after;
    auto attn = attention_options(cfg_, layer);
    attn.q_norm = norm_if(cfg_.use_qk_norm, K, Point::kQNormScale, Point::kQNormNormalized);
    attn.k_norm = norm_if(cfg_.use_qk_norm, K, Point::kKNormScale, Point::kKNormNormalized);
    const int64_t in_rows = cfg_.gated_mlp ? 2 * M : M;
    return nn::Block({.ln1 = norm(D, Point::kLn1Scale, Point::kLn1Normalized),
                      .attn = nn::Attention({.W_QKV = zeros({QKV, D}),
                                             .b_QKV = zeros({QKV}, cfg_.qkv_bias),
                                             .W_O = zeros({D, HK}),
                                             .b_O = zeros({D}, cfg_.attn_out_bias)},
                                            std::move(attn)),
                      .ln1_post = norm_if(both, D, Point::kLn1PostScale, Point::kLn1PostNormalized),
                      .ln2 = norm(D, Point::kLn2Scale, Point::kLn2Normalized),
                      .mlp = nn::Mlp({.W_in = zeros({in_rows, D}),
                                      .b_in = zeros({in_rows}, cfg_.mlp_bias),
                                      .W_out = zeros({D, M}),
                                      .b_out = zeros({D}, cfg_.mlp_bias)},
                                     ops::parse_activation(cfg_.act_fn)),
                      .ln2_post = norm_if(both, D, Point::kLn2PostScale, Point::kLn2PostNormalized),
                      .parallel = cfg_.parallel_attn_mlp});
  }

  const Config& cfg_;
  torch::TensorOptions options_;
};

}  // namespace

std::shared_ptr<const Model> new_model(const Config& cfg, torch::ScalarType dtype, torch::Device device) {
  cfg.validate();
  check<ConfigError>(dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat64 ||
                         dtype == torch::kFloat16,
                     "new_model: dtype must be float32, bfloat16, float16 or float64, got ", dtype);
  const at::NoGradGuard no_grad;
  auto weights = Builder(cfg, at::device(device).dtype(dtype)).weights();
  return std::make_shared<const Model>(cfg, std::move(weights), std::nullopt, std::nullopt,
                                       sha256_hex("new model " + to_json(cfg)));
}

}  // namespace introspect::models
