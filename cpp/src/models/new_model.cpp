#include "introspect/models/new_model.h"

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/config_json.h"
#include "introspect/ops/rotary.h"

#include "models/check_device.h"
#include "models/make_block.h"

namespace introspect::models {

namespace {

/// Matrices and biases of zeros, norms of ones.
struct Untrained {
  torch::TensorOptions options;
  const Config& cfg;

  torch::Tensor zeros(at::IntArrayRef sizes) const { return at::zeros(sizes, options); }

  nn::Linear linear(std::string_view, int64_t rows, int64_t columns, bool has_bias) const {
    return nn::Linear(zeros({rows, columns}), has_bias ? zeros({rows}) : torch::Tensor{});
  }

  torch::Tensor vector(std::string_view, int64_t width) const { return zeros({width}); }

  std::vector<nn::MlpWeights> experts(int64_t rows) const {
    std::vector<nn::MlpWeights> out;
    for (int64_t e = 0; e < cfg.num_experts; ++e)
      out.push_back(
          {linear("", rows, cfg.d_model, cfg.mlp_bias), linear("", cfg.d_model, cfg.d_mlp, cfg.mlp_bias)});
    return out;
  }

  std::pair<torch::Tensor, torch::Tensor> norm(std::string_view, int64_t width, nn::NormKind kind) const {
    const auto dtype = kind == nn::NormKind::kGemmaRms ? torch::kFloat32 : options.dtype().toScalarType();
    return {at::ones({width}, options.dtype(dtype)),
            kind == nn::NormKind::kLayer ? zeros({width}) : torch::Tensor{}};
  }
};

Weights untrained(const Config& cfg, const torch::TensorOptions& options) {
  using hooks::Point;
  const Untrained source{options, cfg};
  const int64_t D = cfg.d_model, V = cfg.d_vocab;
  Weights w;
  w.W_E = nn::Linear(source.zeros({V, D}));
  if (cfg.positional_embedding_type == "standard") w.W_pos = source.zeros({cfg.n_ctx, D});
  for (int64_t layer = 0; layer < cfg.n_layers; ++layer) w.blocks.push_back(make_block(cfg, layer, source));
  w.ln_final = make_norm(cfg, source, "ln_final", D, Point::kLnFinalScale, Point::kLnFinalNormalized);
  w.W_U = cfg.tie_word_embeddings ? w.W_E : nn::Linear(source.zeros({V, D}));
  w.b_U = source.zeros({V});
  if (cfg.positional_embedding_type != "rotary") return w;
  w.rotary_frequencies =
      ops::rotary_frequencies(cfg.rotary_dim, cfg.rotary_base, cfg.rotary_scaling).to(options.device());
  if (cfg.rotary_base_local > 0)
    w.rotary_frequencies_local =
        ops::rotary_frequencies(cfg.rotary_dim, cfg.rotary_base_local, {}).to(options.device());
  return w;
}

}  // namespace

std::shared_ptr<const Model> new_model(const Config& cfg, torch::ScalarType dtype, torch::Device device) {
  cfg.validate();
  check<ConfigError>(dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat64 ||
                         dtype == torch::kFloat16,
                     "new_model: dtype must be float32, bfloat16, float16 or float64, got ", dtype);
  check_holds_numbers("new_model", device);
  const at::NoGradGuard no_grad;
  return std::make_shared<const Model>(cfg, untrained(cfg, at::device(device).dtype(dtype)), std::nullopt,
                                       std::nullopt, sha256_hex("new model " + to_json(cfg)));
}

}  // namespace introspect::models
