#include "introspect/sae/feature_effects.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "sae/arithmetic.h"
#include "sae/sites.h"

namespace introspect::sae {
namespace {

constexpr int64_t kChunk = 1 << 15;  // entries whose decoder rows are gathered at a time

}  // namespace

FeatureEffects feature_effects(const Dictionary& d, const torch::Tensor& x_ND,
                               const torch::Tensor& gradient_ND, const torch::Tensor& source_ND) {
  check<ShapeError>(x_ND.dim() == 2 && x_ND.size(1) == d.d_out() && gradient_ND.sizes() == x_ND.sizes(),
                    "feature_effects: x and the gradient must be [N, ", d.d_out(), "], got ", x_ND.sizes(),
                    " and ", gradient_ND.sizes());
  const bool transcodes = source_ND.defined();
  check<ShapeError>(!transcodes || (source_ND.dim() == 2 && source_ND.size(0) == x_ND.size(0)),
                    "feature_effects: the source must have a row for each of x's ", x_ND.size(0));
  const at::NoGradGuard no_grad;
  const auto type = arithmetic(d.dtype());
  const auto options = d.weights().W_dec_FD.options().dtype(type);
  const auto g_ND = gradient_ND.to(options), x = x_ND.to(options);
  const auto read = transcodes ? source_ND.to(options) : x;

  FeatureEffects out{.features = d.encode_sparse(read), .effects = {}, .error_N = {}, .bias_N = {}};
  const auto& f = out.features;
  const auto counts = f.offsets.slice(0, 1) - f.offsets.slice(0, 0, -1);
  const auto rows = at::repeat_interleave(at::arange(f.rows(), counts.options()), counts);
  std::vector<torch::Tensor> parts;
  for (int64_t first = 0; first < f.indices.numel(); first += kChunk) {
    const int64_t n = std::min(kChunk, f.indices.numel() - first);
    const auto W_ED = d.weights().W_dec_FD.index_select(0, f.indices.narrow(0, first, n)).to(type);
    parts.push_back((W_ED * g_ND.index_select(0, rows.narrow(0, first, n))).sum(-1));
  }
  out.effects = parts.empty() ? at::zeros({0}, options) : f.values.to(type) * at::cat(parts);
  if (d.config().rank_by_decoder_norm)
    out.effects = out.effects / decoder_divisors(d, type).index_select(0, f.indices);
  if (d.config().input_norm != InputNorm::none) {
    const auto scale = d.input(read).scale;
    const auto scale_N = scale.dim() == 0 ? scale.expand({f.rows()}) : scale.squeeze(-1);
    out.effects = out.effects * scale_N.index_select(0, rows);
  }
  const auto decoded = d.decode(f, read);
  out.error_N = ((x - decoded) * g_ND).sum(-1);
  out.bias_N = (decoded * g_ND).sum(-1).index_add(0, rows, -out.effects);
  return out;
}

}  // namespace introspect::sae
