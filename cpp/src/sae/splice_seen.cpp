#include <ATen/ATen.h>

#include "introspect/sae/splice.h"

#include "sae/arithmetic.h"
#include "sae/sites.h"

namespace introspect::sae {
namespace {

using torch::Tensor;

/// What is decoded, step by step.
Tensor decoded(const Dictionary& d, const Tensor& x, const SeePoint& see) {
  const auto& w = d.weights();
  const auto& config = d.config();
  const auto type = arithmetic(d.dtype());
  const auto in_type = [type](const Tensor& t) { return t.defined() ? t.to(type) : t; };
  const auto read = see("hook_sae_input", x.to(d.device(), type));
  const auto in = d.input(read);
  Tensor f;
  if (config.architecture == Architecture::matching_pursuit) {
    f = in_type(d.encode(read));
  } else if (config.architecture == Architecture::gated) {  // SAELens shows the magnitudes' pre-activations
    const auto q = d.pre_activations(read);
    const auto p = see("hook_sae_acts_pre", q * in_type(w.r_mag_F).exp() + in_type(w.b_mag_F));
    f = (q > -in_type(w.b_gate_F)).to(type) * at::relu(p);
    if (config.rank_by_decoder_norm) f = f * in_type(d.decoder_norms());
  } else {
    f = activate(config, w, see("hook_sae_acts_pre", d.pre_activations(read)));
  }
  f = see("hook_sae_acts_post", f);
  if (config.rank_by_decoder_norm) f = f / decoder_divisors(d, type);
  auto y = at::matmul(f, in_type(w.W_dec_FD));
  if (w.b_dec_D.defined()) y = y + w.b_dec_D;
  y = see("hook_sae_recons", y);
  if (in.scale.defined()) y = y * in.scale;
  if (in.shift.defined()) y = y + in.shift;
  return w.W_skip_DD.defined() ? y + at::linear(read, in_type(w.W_skip_DD)) : y;
}

}  // namespace

Tensor splice_seen(const Dictionary& dictionary, const Tensor& x, const Tensor& source, bool keeps_error,
                   const SeePoint& see) {
  const auto was = side_by_side(x, dictionary.d_out(), "writes");
  const auto read = source.defined() ? side_by_side(source, dictionary.d_in(), "reads") : was;
  bool replaced = false;
  const SeePoint watched = [&](const std::string& name, const Tensor& value) {
    auto seen = see(name, value);
    replaced = replaced || !(seen.is_same(value) || at::equal(seen, value));
    return seen;
  };
  auto y = decoded(dictionary, read, watched).reshape(x.sizes());
  if (!keeps_error) return see("hook_sae_output", y.to(x.scalar_type()));
  Tensor clean, error;
  {
    const at::NoGradGuard no_grad;
    const SeePoint unseen = [](const std::string&, const Tensor& value) { return value; };
    clean = replaced ? decoded(dictionary, read.detach(), unseen).reshape(x.sizes()) : y.detach();
    error = x.detach() - clean;
  }
  const auto seen = see("hook_sae_error", error);
  // x + (y - clean) + (seen - error): what was not replaced adds 0, and not the rounding of a sum.
  y = x.detach() + (y - clean);
  if (!seen.is_same(error)) y = y + (seen - error);
  return see("hook_sae_output", y.to(x.scalar_type()));
}

}  // namespace introspect::sae
