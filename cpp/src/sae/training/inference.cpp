#include <ATen/ATen.h>

#include "sae/training/state.h"

namespace introspect::sae {
namespace {

Architecture architecture_of(Objective objective) {
  switch (objective) {
    case Objective::standard:
    case Objective::p_anneal:
      return Architecture::standard;
    case Objective::gated:
      return Architecture::gated;
    case Objective::topk:
      return Architecture::topk;
    case Objective::abstopk:
      return Architecture::abstopk;
    case Objective::batchtopk:
    case Objective::matryoshka:
    case Objective::jumprelu:
      return Architecture::jumprelu;
    case Objective::matching_pursuit:
      return Architecture::matching_pursuit;
  }
  throw std::logic_error("Trainer: an objective without an architecture");
}

}  // namespace

Dictionary training::dictionary_of(const State& state) {
  const at::NoGradGuard no_grad;
  const auto& o = state.options;
  const bool of_batch = o.objective == Objective::batchtopk || o.objective == Objective::matryoshka;
  const bool chooses = of_batch || o.objective == Objective::topk || o.objective == Objective::abstopk;
  DictionaryConfig config;
  config.architecture = architecture_of(o.objective);
  config.subtract_b_dec = o.subtract_b_dec;
  config.residual_threshold = o.residual_threshold;
  if (!of_batch && (chooses || o.objective == Objective::matching_pursuit)) config.k = o.k;
  if (o.input_norm == InputNorm::constant_norm || o.input_norm == InputNorm::layer_norm)
    config.input_norm = o.input_norm;
  auto w = DictionaryWeights::from_operands(state.w.operands().clone());
  const auto ones = at::ones({o.d_sae}, state.like());
  auto norms_F =
      o.rank_by_decoder_norm ? training::Pass(o, state.w, state.sites_out()).norms().clamp_min(1e-12) : ones;
  if (state.scale_in.defined() && o.objective == Objective::matching_pursuit) {
    config.input_norm = InputNorm::scale;  // its rows encode, and keep their length
    config.input_scale = state.scale_in[0].item<double>();
  } else if (state.scale_in.defined()) {
    // s x - b = s (x - b / s) goes in; (f W + b) / s comes out
    w.W_enc_FD = w.W_enc_FD * state.scale_in;
    w.W_dec_FD = w.W_dec_FD / state.scale_out;
    if (w.b_dec_D.defined()) w.b_dec_D = w.b_dec_D / state.scale_out;
    if (o.skip) w.W_skip_DD = w.W_skip_DD * state.scale_in / state.scale_out.unsqueeze(1);
  }
  if (of_batch) w.threshold_F = state.threshold / norms_F;  // that of p
  if (chooses && o.rank_by_decoder_norm) {
    // Features times what they are ranked by, in the unit that gives W_dec rows of length 1 where there is one site.
    const auto unit_F = state.scale_out.defined() ? norms_F / state.scale_out[0] : norms_F;
    w.W_enc_FD = w.W_enc_FD * unit_F.unsqueeze(1);
    w.b_enc_F = w.b_enc_F * unit_F;
    w.W_dec_FD = w.W_dec_FD / unit_F.unsqueeze(1);
    if (of_batch) w.threshold_F = w.threshold_F * unit_F;
  }
  const Dictionary out(config, w, state.origin);
  return state.whitening.mean_D.defined() ? fold_whitening(out, state.whitening) : out;
}

Dictionary Trainer::dictionary() const {
  return training::dictionary_of(*state_);
}

}  // namespace introspect::sae
