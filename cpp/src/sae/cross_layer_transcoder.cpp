#include "introspect/sae/cross_layer_transcoder.h"

#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "core/dense.h"
#include "sae/arithmetic.h"

namespace introspect::sae {

namespace {

/// x [L, .., width].
void check_layers(const torch::Tensor& x, int64_t L, int64_t width, const char* what) {
  check_dense<ShapeError>(x, "CrossLayerTranscoder: ", what);
  check<ShapeError>(x.dim() >= 2 && x.size(0) == L && x.size(-1) == width, "CrossLayerTranscoder: ", what,
                    " must be [", L, ", .., ", width, "], got ", x.sizes());
}

/// What the features of a layer write to it and those above, [L - l, .., D] of [.., (L - l) D].
torch::Tensor by_layer(const torch::Tensor& y, int64_t D) {
  return y.unflatten(-1, {-1, D}).movedim(-2, 0);
}

}  // namespace

CrossLayerTranscoder::CrossLayerTranscoder(std::vector<Dictionary> layers, torch::Tensor b_dec_LD,
                                           torch::Tensor W_skip_LDD, DictionaryOrigin origin)
    : layers_(std::move(layers)),
      b_dec_LD_(std::move(b_dec_LD)),
      W_skip_LDD_(std::move(W_skip_LDD)),
      origin_(std::move(origin)) {
  check<ConfigError>(!layers_.empty(), "CrossLayerTranscoder: at least one layer is required");
  const int64_t L = n_layers(), D = d_out();
  for (int64_t l = 0; l < L; ++l) {
    const auto& one = layers_[l];
    check<ShapeError>(one.d_in() == d_in() && one.d_sae() == d_sae() && one.d_out() == (L - l) * D,
                      "CrossLayerTranscoder: layer ", l, " must have d_in ", d_in(), ", d_sae ", d_sae(),
                      " and d_out ", (L - l) * D, ", the outputs of ", L - l, " layers, got ", one.d_in(),
                      ", ", one.d_sae(), " and ", one.d_out());
    check<ShapeError>(one.dtype() == dtype() && one.device() == device(), "CrossLayerTranscoder: layer ", l,
                      " must be of the first one's dtype and device");
    check<ConfigError>(!one.weights().b_dec_D.defined() && !one.weights().W_skip_DD.defined() &&
                           one.config().input_norm == InputNorm::none,
                       "CrossLayerTranscoder: layer ", l,
                       " must have no b_dec, skip or input norm of its own");
  }
  for (const auto& [t, what, shape] : {std::tuple{b_dec_LD_, "b_dec", std::vector{L, D}},
                                       {W_skip_LDD_, "W_skip", std::vector{L, D, d_in()}}}) {
    if (!t.defined()) continue;
    check_dense<ShapeError>(t, "CrossLayerTranscoder: ", what);
    check<ShapeError>(t.sizes() == shape && t.scalar_type() == dtype() && t.device() == device(),
                      "CrossLayerTranscoder: ", what, " must be ", at::IntArrayRef(shape), " of the layers' ",
                      dtype(), ", got ", t.scalar_type(), " ", t.sizes());
    check<std::invalid_argument>(at::isfinite(t).all().item<bool>(), "CrossLayerTranscoder: ", what,
                                 " must be finite");
  }
  for (const auto* sites : {&origin_.inputs, &origin_.outputs})
    check<ConfigError>(sites->empty() || static_cast<int64_t>(sites->size()) == L,
                       "CrossLayerTranscoder: a site of each of the ", L,
                       " layers is required, or none, got ", sites->size());
  for (int64_t l = 0; l < L; ++l) {
    auto own = origin_;
    if (!own.inputs.empty()) own.inputs = {origin_.inputs[l]};
    if (!own.outputs.empty()) own.outputs.erase(own.outputs.begin(), own.outputs.begin() + l);
    layers_[l] = layers_[l].with_origin(std::move(own));
  }
}

torch::Tensor CrossLayerTranscoder::W_dec(int64_t layer) const {
  check<std::out_of_range>(layer >= 0 && layer < n_layers(), "CrossLayerTranscoder: layers are 0 to ",
                           n_layers() - 1, ", got ", layer);
  return layers_[layer].weights().W_dec_FD.unflatten(-1, {n_layers() - layer, d_out()});
}

std::string CrossLayerTranscoder::hash() const {
  Sha256 hash;
  for (const auto& one : layers_) hash.update(one.hash());
  for (const auto& t : {b_dec_LD_, W_skip_LDD_}) {
    if (!t.defined()) {
      hash.update("none");
      continue;
    }
    const auto dense = t.to(torch::kCPU).contiguous();
    hash.update(concat(dense.sizes())).update(dense.const_data_ptr(), dense.nbytes());
  }
  return hash.hex();
}

torch::Tensor CrossLayerTranscoder::encode(const torch::Tensor& x) const {
  check_layers(x, n_layers(), d_in(), "inputs");
  std::vector<torch::Tensor> f;
  for (int64_t l = 0; l < n_layers(); ++l) f.push_back(layers_[l].encode(x[l]));
  return at::stack(f);
}

std::vector<SparseFeatures> CrossLayerTranscoder::encode_sparse(const torch::Tensor& x_LND) const {
  check_layers(x_LND, n_layers(), d_in(), "inputs");
  std::vector<SparseFeatures> f;
  for (int64_t l = 0; l < n_layers(); ++l) f.push_back(layers_[l].encode_sparse(x_LND[l]));
  return f;
}

torch::Tensor CrossLayerTranscoder::decode(const torch::Tensor& f, const torch::Tensor& x) const {
  check_layers(f, n_layers(), d_sae(), "features");
  const int64_t L = n_layers(), D = d_out();
  std::vector<torch::Tensor> y(static_cast<size_t>(L));
  for (int64_t l = 0; l < L; ++l) {
    const auto written = by_layer(layers_[l].decoded(f[l]), D);
    for (int64_t t = l; t < L; ++t) y[t] = l == 0 ? written[t] : y[t] + written[t - l];
  }
  return finish(at::stack(y), x);
}

torch::Tensor CrossLayerTranscoder::decode(const std::vector<SparseFeatures>& f,
                                           const torch::Tensor& x_LND) const {
  const int64_t L = n_layers(), D = d_out();
  check<ShapeError>(static_cast<int64_t>(f.size()) == L, "CrossLayerTranscoder: features of ", L,
                    " layers are required, got ", f.size());
  const at::NoGradGuard no_grad;
  auto y_LND = at::zeros({L, f.front().rows(), D}, layers_.front().weights().W_dec_FD.options())
                   .to(arithmetic(dtype()));
  for (int64_t l = 0; l < L; ++l) {
    check<ShapeError>(f[l].rows() == f.front().rows() && f[l].d_sae == d_sae(),
                      "CrossLayerTranscoder: each layer must have as many rows as the first, of ", d_sae(),
                      " features");
    y_LND.narrow(0, l, L - l).add_(by_layer(layers_[l].decoded(f[l]), D));
  }
  return finish(y_LND, x_LND);
}

torch::Tensor CrossLayerTranscoder::finish(torch::Tensor y, const torch::Tensor& x) const {
  const int64_t L = n_layers();
  std::vector<int64_t> bias_shape(static_cast<size_t>(y.dim()), 1);
  bias_shape.front() = L;
  bias_shape.back() = d_out();
  if (b_dec_LD_.defined()) y = y + b_dec_LD_.to(y.scalar_type()).reshape(bias_shape);
  if (W_skip_LDD_.defined()) {
    check<std::invalid_argument>(x.defined(), "CrossLayerTranscoder: decode needs the input x, for its skip");
    check_layers(x, L, d_in(), "inputs");
    const auto x_LND = x.to(y.options()).reshape({L, -1, d_in()});
    y = y + at::bmm(x_LND, W_skip_LDD_.to(y.scalar_type()).mT()).reshape(y.sizes());
  }
  return y.to(dtype());
}

torch::Tensor CrossLayerTranscoder::forward(const torch::Tensor& x) const {
  check_layers(x, n_layers(), d_in(), "inputs");
  bool wants_gradient = x.requires_grad() || (b_dec_LD_.defined() && b_dec_LD_.requires_grad()) ||
                        (W_skip_LDD_.defined() && W_skip_LDD_.requires_grad());
  for (const auto& one : layers_) wants_gradient |= one.weights().operands().requires_grad();
  if (at::GradMode::is_enabled() && wants_gradient) {
    std::vector<torch::Tensor> f;
    for (int64_t l = 0; l < n_layers(); ++l) f.push_back(layers_[l].features(x[l]));
    return decode(at::stack(f), x);
  }
  const auto x_LND = x.reshape({n_layers(), -1, d_in()});
  std::vector<SparseFeatures> f;
  for (int64_t l = 0; l < n_layers(); ++l) f.push_back(layers_[l].sparse_features(x_LND[l]));
  auto shape = x.sizes().vec();
  shape.back() = d_out();
  return decode(f, x_LND).reshape(shape);
}

CrossLayerTranscoder CrossLayerTranscoder::to(torch::ScalarType dtype) const {
  std::vector<Dictionary> layers;
  for (const auto& one : layers_) layers.push_back(one.to(dtype));
  const auto moved = [&](const torch::Tensor& t) { return t.defined() ? t.to(dtype) : t; };
  return {std::move(layers), moved(b_dec_LD_), moved(W_skip_LDD_), origin_};
}

CrossLayerTranscoder CrossLayerTranscoder::to(torch::Device device) const {
  std::vector<Dictionary> layers;
  for (const auto& one : layers_) layers.push_back(one.to(device));
  const auto moved = [&](const torch::Tensor& t) { return t.defined() ? t.to(device) : t; };
  return {std::move(layers), moved(b_dec_LD_), moved(W_skip_LDD_), origin_};
}

CrossLayerTranscoder CrossLayerTranscoder::fold_decoder_norm() const {
  std::vector<Dictionary> layers;
  for (const auto& one : layers_) layers.push_back(one.fold_decoder_norm());
  return {std::move(layers), b_dec_LD_, W_skip_LDD_, origin_};
}

}  // namespace introspect::sae
