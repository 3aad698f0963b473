#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

namespace {

/// True where one feature depends on the others' p.
bool chooses(Architecture architecture) {
  return architecture == Architecture::topk || architecture == Architecture::abstopk ||
         architecture == Architecture::batchtopk || architecture == Architecture::groupmax;
}

}  // namespace

Dictionary Dictionary::fold_decoder_norm() const {
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: the rows of matching pursuit are of length 1 and encode too");
  check<ConfigError>(config_.rank_by_decoder_norm || !chooses(config_.architecture),
                     "Dictionary: norms of the decoder's rows cannot be folded into one of architecture ",
                     to_string(config_.architecture), ", whose choice of features would be another");
  // A row of zeros writes nothing, whatever its features are; times 0 they are none.
  const auto n_F = decoder_norms();
  const auto divisors_F = at::where(n_F > 0, n_F, at::ones_like(n_F));
  auto w = weights_;
  w.W_dec_FD = (w.W_dec_FD / divisors_F.unsqueeze(1)).to(dtype());
  w.W_enc_FD = (w.W_enc_FD * n_F.unsqueeze(1)).to(dtype());
  for (auto part : {&DictionaryWeights::b_enc_F, &DictionaryWeights::b_gate_F, &DictionaryWeights::b_mag_F})
    if ((w.*part).defined()) w.*part = (w.*part * n_F).to(dtype());
  // Ranked by norm, p n is what the threshold is of already.
  if (w.threshold_F.defined() && !config_.rank_by_decoder_norm)
    w.threshold_F = (w.threshold_F * n_F).to(dtype());
  auto config = config_;
  config.rank_by_decoder_norm = false;
  return {config, w, origin_};
}

Dictionary Dictionary::fold_input_scale() const {
  check<ConfigError>(config_.input_norm == InputNorm::none || config_.input_norm == InputNorm::scale,
                     "Dictionary: an input norm of each row cannot be folded into weights, got ",
                     to_string(config_.input_norm));
  if (config_.input_norm == InputNorm::none) return *this;
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: the rows of matching pursuit are of length 1 and encode too");
  auto config = config_;
  config.input_norm = InputNorm::none;
  config.input_scale = 1;
  auto w = weights_;
  // s x - b = s (x - b / s), and (f W_dec + b) / s
  w.W_enc_FD = w.W_enc_FD * config_.input_scale;
  w.W_dec_FD = w.W_dec_FD / config_.input_scale;
  if (w.b_dec_D.defined()) w.b_dec_D = w.b_dec_D / config_.input_scale;
  // Ranked by norm, features are p n, and n became n / s.
  if (config.rank_by_decoder_norm && w.threshold_F.defined())
    w.threshold_F = w.threshold_F / config_.input_scale;
  return {config, w, origin_};
}

}  // namespace introspect::sae
