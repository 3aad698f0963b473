#include "introspect/nn/linear.h"

#include <algorithm>
#include <utility>

#include "core/stages.h"
#include "introspect/core/check.h"
#include "introspect/ops/linear.h"
#include "introspect/ops/quantised_rows.h"
#include "ops/check_bias.h"

namespace introspect::nn {

namespace {

/// What a product of x and a Linear has to do.
StageWork product_work(const Linear& linear, const torch::Tensor& x, const torch::Tensor& y) {
  return {2.0 * static_cast<double>(x.numel()) * static_cast<double>(linear.n_out()),
          static_cast<double>(linear.nbytes()) + static_cast<double>(x.nbytes() + y.nbytes())};
}

}  // namespace

Linear::Linear(torch::Tensor weight, torch::Tensor bias)
    : weight_(std::move(weight)), bias_(std::move(bias)) {
  check<ShapeError>(weight_.dim() == 2, "Linear: the weight must be [out, in], got ", weight_.sizes());
  ops::check_bias("Linear: the bias", bias_, n_out());
}

Linear::Linear(const ops::QuantisedRows& weight, torch::Tensor bias)
    : quantised_(std::make_shared<const ops::QuantisedRows>(weight)), bias_(std::move(bias)) {
  ops::check_bias("Linear: the bias", bias_, n_out());
}

Linear Linear::plus(LowRank addition) const {
  const auto& [A, B, scaling, first] = addition;
  check<ShapeError>(A.dim() == 2 && B.dim() == 2 && A.size(1) == n_in() && B.size(1) == A.size(0) &&
                        first >= 0 && first + B.size(0) <= n_out(),
                    "Linear: an addition to a weight [", n_out(), ", ", n_in(), "] must be A [r, ", n_in(),
                    "] and B [n, r] within its rows, got ", A.sizes(), " and ", B.sizes(), " at row ", first);
  auto out = *this;
  out.additions_.push_back(std::move(addition));
  return out;
}

Linear Linear::with_bias(torch::Tensor bias) const {
  auto out = *this;
  out.bias_ = std::move(bias);
  ops::check_bias("Linear: the bias", out.bias_, n_out());
  return out;
}

torch::Tensor Linear::forward(const torch::Tensor& x) const {
  auto y = quantised_ ? quantised_->product(x, bias_) : ops::linear(x, weight_, bias_);
  for (const auto& [A, B, scaling, first] : additions_) {
    const auto low = ops::linear(x.to(A.scalar_type()), A, {});
    y.narrow(-1, first, B.size(0)).add_(ops::linear(low, B, {}), scaling);
  }
  if (auto* clock = current_clock()) clock->count(product_work(*this, x, y));
  return y;
}

torch::Tensor Linear::forward_fp32(const torch::Tensor& x_ND) const {
  if (quantised_ || !additions_.empty()) return forward(x_ND);
  auto y = ops::linear_fp32(x_ND, weight_);
  if (auto* clock = current_clock()) clock->count(product_work(*this, x_ND, y));
  return bias_.defined() ? y + bias_ : y;
}

Linear Linear::rows(int64_t first, int64_t n) const {
  const auto bias = bias_.defined() ? bias_.narrow(0, first, n) : bias_;
  auto out =
      quantised_ ? Linear(quantised_->rows(first, n), bias) : Linear(weight_.narrow(0, first, n), bias);
  for (const auto& [A, B, scaling, at] : additions_) {
    const int64_t begin = std::max(first, at), end = std::min(first + n, at + B.size(0));
    if (begin < end)
      out.additions_.push_back({A, B.narrow(0, begin - at, end - begin), scaling, begin - first});
  }
  return out;
}

torch::Tensor Linear::gather(const torch::Tensor& ids, torch::ScalarType dtype) const {
  return quantised_ ? quantised_->gather(ids, dtype) : at::embedding(weight_, ids).to(dtype);
}

torch::Tensor Linear::dense(torch::ScalarType dtype) const {
  auto W = quantised_ ? quantised_->dense(dtype) : weight_.to(dtype);
  if (additions_.empty()) return W;
  if (W.is_same(weight_)) W = W.clone();
  for (const auto& [A, B, scaling, first] : additions_)
    W.narrow(0, first, B.size(0)).add_(at::mm(B, A), scaling);
  return W;
}

int64_t Linear::n_out() const {
  return quantised_ ? quantised_->n_rows() : weight_.size(0);
}

int64_t Linear::n_in() const {
  return quantised_ ? quantised_->n_columns() : weight_.size(1);
}

torch::Device Linear::device() const {
  return quantised_ ? torch::Device(torch::kCPU) : weight_.device();
}

torch::ScalarType Linear::dtype() const {
  return quantised_ ? quantised_->dtype() : weight_.scalar_type();
}

torch::ScalarType Linear::wide_dtype() const {
  return dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}

bool Linear::shares_weight(const Linear& other) const {
  return quantised_ ? quantised_ == other.quantised_ : weight_.is_same(other.weight_);
}

int64_t Linear::numel() const {
  int64_t n = quantised_ ? n_out() * n_in() : 0;
  for_each_tensor(*this, "", [&](const auto&, const torch::Tensor& t) { n += t.numel(); });
  return n;
}

int64_t Linear::nbytes() const {
  int64_t n = quantised_ ? quantised_->nbytes() : 0;
  for_each_tensor(*this, "",
                  [&](const auto&, const torch::Tensor& t) { n += static_cast<int64_t>(t.nbytes()); });
  return n;
}

}  // namespace introspect::nn
