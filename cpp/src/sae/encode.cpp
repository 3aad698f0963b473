#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include <ATen/ATen.h>

#include "introspect/ops/linear.h"
#include "introspect/sae/dictionary.h"

#include "core/dense.h"
#include "core/on_device.h"
#include "sae/architectures/architectures.h"
#include "sae/arithmetic.h"

namespace introspect::sae {

namespace {

/// True where the features of one p do not depend on the others.
bool is_elementwise(Architecture architecture) {
  return architecture == Architecture::standard || architecture == Architecture::gated ||
         architecture == Architecture::jumprelu;
}

torch::Tensor in(torch::ScalarType dtype, const torch::Tensor& t) {
  return t.defined() ? t.to(dtype) : t;
}

torch::Tensor norms(const torch::Tensor& W_dec_FD, torch::ScalarType dtype) {
  return W_dec_FD.to(dtype).norm(2, -1);
}

architectures::Gates gates(const DictionaryConfig& config, const DictionaryWeights& w,
                           torch::ScalarType dtype) {
  return {in(dtype, w.b_gate_F), in(dtype, w.r_mag_F), in(dtype, w.b_mag_F),
          config.rank_by_decoder_norm ? norms(w.W_dec_FD, dtype) : torch::Tensor()};
}

bool wants_gradient(const torch::Tensor& x, const DictionaryWeights& weights) {
  return at::GradMode::is_enabled() && (x.requires_grad() || weights.operands().requires_grad());
}

/// The weights that features `ids` are computed from.
DictionaryWeights rows_of(const DictionaryWeights& w, const torch::Tensor& ids) {
  DictionaryWeights out;
  for (auto part : {&DictionaryWeights::W_enc_FD, &DictionaryWeights::b_enc_F, &DictionaryWeights::W_dec_FD,
                    &DictionaryWeights::threshold_F, &DictionaryWeights::b_gate_F,
                    &DictionaryWeights::b_mag_F, &DictionaryWeights::r_mag_F})
    if ((w.*part).defined()) out.*part = (w.*part).index_select(0, ids);
  return out;
}

/// Columns `ids` of f: [N, n].
torch::Tensor columns(const SparseFeatures& f, const torch::Tensor& ids) {
  const auto wanted = ids.contiguous();
  const auto* id = wanted.const_data_ptr<int64_t>();
  std::unordered_map<int64_t, int64_t> place;
  for (int64_t i = 0; i < wanted.numel(); ++i) place.emplace(id[i], static_cast<int64_t>(place.size()));
  SparseFeatures some{{at::zeros_like(f.offsets), {}, {}}, static_cast<int64_t>(place.size())};
  std::vector<int64_t> entries, indices;
  auto* offsets = some.offsets.mutable_data_ptr<int64_t>();
  const auto* from = f.offsets.const_data_ptr<int64_t>();
  const auto* index = f.indices.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < f.rows(); ++n) {
    for (int64_t e = from[n]; e < from[n + 1]; ++e)
      if (const auto found = place.find(index[e]); found != place.end()) {
        entries.push_back(e);
        indices.push_back(found->second);
      }
    offsets[n + 1] = static_cast<int64_t>(entries.size());
  }
  some.indices = torch::tensor(indices, torch::kInt64);
  some.values = f.values.index_select(0, torch::tensor(entries, torch::kInt64));
  std::vector<int64_t> order;
  for (int64_t i = 0; i < wanted.numel(); ++i) order.push_back(place.at(id[i]));
  return some.dense().index_select(1, torch::tensor(order, torch::kInt64));
}

}  // namespace

void Dictionary::check_rows(const torch::Tensor& x) const {
  check_dense<ShapeError>(x, "Dictionary: an input");
  check<ShapeError>(x.dim() > 0 && x.size(-1) == d_in() && x.is_floating_point(),
                    "Dictionary: inputs must be of a floating dtype and [.., ", d_in(), "], got ",
                    x.scalar_type(), " ", x.sizes());
}

Dictionary::Input Dictionary::input(const torch::Tensor& x) const {
  check_rows(x);
  Input in{x.to(weights_.W_dec_FD.device(), arithmetic(dtype())), {}, {}};
  switch (config_.input_norm) {
    case InputNorm::none:
    case InputNorm::whitening:  // of no dictionary
      break;
    case InputNorm::scale:
      in.x = in.x * config_.input_scale;
      in.scale = at::scalar_tensor(1 / config_.input_scale, in.x.options());
      break;
    case InputNorm::constant_norm:
      in.scale = in.x.norm(2, -1, /*keepdim=*/true) / std::sqrt(static_cast<double>(d_in()));
      in.x = in.x / in.scale;
      break;
    case InputNorm::layer_norm:
      in.shift = in.x.mean(-1, /*keepdim=*/true);
      in.scale = in.x.std(-1, /*unbiased=*/true, /*keepdim=*/true);
      in.x = (in.x - in.shift) / (in.scale + config_.layer_norm_eps);
      break;
  }
  if (config_.subtract_b_dec && weights_.b_dec_D.defined()) in.x = in.x - weights_.b_dec_D;
  return in;
}

torch::Tensor Dictionary::pre_activations(const torch::Tensor& x) const {
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: matching pursuit has no pre-activations");
  const auto in_x = input(x).x;
  const auto b_F = in(in_x.scalar_type(), weights_.b_enc_F);
  if (in_x.scalar_type() == weights_.W_enc_FD.scalar_type() || wants_gradient(in_x, weights_))
    return ops::linear(in_x, weights_.W_enc_FD.to(in_x.scalar_type()), b_F);
  const auto p = ops::linear_fp32(in_x.reshape({-1, d_in()}), weights_.W_enc_FD);
  auto shape = in_x.sizes().vec();
  shape.back() = d_sae();
  return (b_F.defined() ? p + b_F : p).reshape(shape);
}

torch::Tensor activate(const DictionaryConfig& config, const DictionaryWeights& w, const torch::Tensor& p) {
  const auto dtype = p.scalar_type();
  const auto k = static_cast<int64_t>(config.k);
  if (config.architecture == Architecture::gated) return architectures::gated(p, gates(config, w, dtype));
  const auto ranked = config.rank_by_decoder_norm ? p * norms(w.W_dec_FD, dtype) : p;
  switch (config.architecture) {
    case Architecture::standard:
      return architectures::standard(ranked);
    case Architecture::topk:
      return architectures::topk(ranked, k, config.relu);
    case Architecture::abstopk:
      return architectures::abstopk(ranked, k);
    case Architecture::batchtopk:
      return architectures::batchtopk(ranked, config.k);
    case Architecture::jumprelu:
      return architectures::jumprelu(ranked, in(dtype, w.threshold_F));
    case Architecture::groupmax:
      return architectures::groupmax(ranked, k);
    case Architecture::gated:
    case Architecture::matching_pursuit:
      break;
  }
  throw ConfigError("activate: matching pursuit has no pre-activations");
}

torch::Tensor Dictionary::encode(const torch::Tensor& x) const {
  return features(x).to(dtype());
}

/// f [.., F] in the dtype it computes in.
torch::Tensor Dictionary::features(const torch::Tensor& x) const {
  const bool whole = wants_gradient(x, weights_) || !weights_.W_dec_FD.is_cpu();
  if (config_.architecture != Architecture::matching_pursuit &&
      (whole || is_elementwise(config_.architecture)))
    return activate(config_, weights_, pre_activations(x));
  check_rows(x);
  auto shape = x.sizes().vec();
  shape.back() = d_sae();
  if (!whole) return sparse_features(x.reshape({-1, d_in()})).dense().reshape(shape);
  const auto in_x = input(x).x.reshape({-1, d_in()});
  return architectures::matching_pursuit(in_x, in(in_x.scalar_type(), weights_.W_dec_FD),
                                         static_cast<int64_t>(config_.k), config_.residual_threshold)
      .reshape(shape);
}

torch::Tensor Dictionary::encode(const torch::Tensor& x, const torch::Tensor& ids) const {
  check_dense<ShapeError>(ids, "Dictionary: ids of features");
  check<ShapeError>(ids.dim() == 1 && ids.scalar_type() == torch::kInt64,
                    "Dictionary: ids of features must be int64 [n], got ", ids.scalar_type(), " ",
                    ids.sizes());
  const bool inside =
      ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < d_sae());
  check<std::out_of_range>(inside, "Dictionary: ids of features must be from 0 to ", d_sae() - 1, ", got ",
                           inside ? 0 : ids.min().item<int64_t>(), " to ",
                           inside ? 0 : ids.max().item<int64_t>());
  const auto here = on_device(ids, device());
  if (is_elementwise(config_.architecture)) {
    const auto some = rows_of(weights_, here);
    const auto in_x = input(x).x;
    const auto type = in_x.scalar_type();
    const auto p = ops::linear(in_x, in(type, some.W_enc_FD), in(type, some.b_enc_F));
    return activate(config_, some, p).to(dtype());
  }
  if (wants_gradient(x, weights_) || !weights_.W_dec_FD.is_cpu()) return encode(x).index_select(-1, here);
  check_rows(x);
  auto shape = x.sizes().vec();
  shape.back() = ids.numel();
  return columns(encode_sparse(x.reshape({-1, d_in()})), here).reshape(shape);
}

SparseFeatures Dictionary::encode_sparse(const torch::Tensor& x_ND) const {
  check_rows(x_ND);
  check<ShapeError>(x_ND.dim() == 2, "Dictionary: encode_sparse takes rows [N, d_in], got ", x_ND.sizes());
  auto f = sparse_features(x_ND);
  f.values = f.values.to(dtype());
  return f;
}

/// encode_sparse in the dtype it computes in.
SparseFeatures Dictionary::sparse_features(const torch::Tensor& x_ND) const {
  const at::NoGradGuard no_grad;
  if (!weights_.W_dec_FD.is_cpu()) return SparseFeatures::of(features(x_ND));
  const auto x = input(x_ND).x;
  const auto type = x.scalar_type();
  const auto k = static_cast<int64_t>(config_.k);
  const auto& w = weights_;
  const auto rows = [&]() -> ops::SparseRows {
    const ops::LinearRows linear{w.W_enc_FD, w.b_enc_F,
                                 config_.rank_by_decoder_norm ? norms(w.W_dec_FD, type) : torch::Tensor()};
    switch (config_.architecture) {
      case Architecture::standard:
        return architectures::standard_rows(x, linear);
      case Architecture::gated:
        return architectures::gated_rows(x, w.W_enc_FD, gates(config_, w, type));
      case Architecture::topk:
        return architectures::topk_rows(x, linear, k, config_.relu);
      case Architecture::abstopk:
        return architectures::abstopk_rows(x, linear, k);
      case Architecture::batchtopk:
        return architectures::batchtopk_rows(x, linear, config_.k);
      case Architecture::jumprelu:
        return architectures::jumprelu_rows(x, linear, w.threshold_F);
      case Architecture::groupmax:
        return architectures::groupmax_rows(x, linear, k);
      case Architecture::matching_pursuit:
        return architectures::matching_pursuit_rows(x, in(type, w.W_dec_FD), k, config_.residual_threshold);
    }
    throw std::logic_error("encode_sparse: unknown architecture");
  }();
  return {rows, d_sae()};
}

}  // namespace introspect::sae
