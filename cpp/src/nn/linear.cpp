#include "introspect/nn/linear.h"

#include <algorithm>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/ops/linear.h"

namespace introspect::nn {

Linear::Linear(torch::Tensor weight, torch::Tensor bias)
    : weight_(std::move(weight)), bias_(std::move(bias)) {
  check<ShapeError>(weight_.dim() == 2, "Linear: the weight must be [out, in], got ", weight_.sizes());
  check<ShapeError>(!bias_.defined() || (bias_.dim() == 1 && bias_.size(0) == n_out()),
                    "Linear: the bias must be [", n_out(), "], got ",
                    bias_.defined() ? bias_.sizes() : at::IntArrayRef{});
}

Linear Linear::plus(LowRank addition) const {
  const auto& [A, B, scaling, first] = addition;
  check<ShapeError>(A.dim() == 2 && B.dim() == 2 && A.size(1) == n_in() && B.size(1) == A.size(0) &&
                        first >= 0 && first + B.size(0) <= n_out(),
                    "Linear: an addition to a weight ", weight_.sizes(), " must be A [r, ", n_in(),
                    "] and B [n, r] within its rows, got ", A.sizes(), " and ", B.sizes(), " at row ", first);
  auto out = *this;
  out.additions_.push_back(std::move(addition));
  return out;
}

torch::Tensor Linear::forward(const torch::Tensor& x) const {
  auto y = ops::linear(x, weight_, bias_);
  for (const auto& [A, B, scaling, first] : additions_) {
    const auto low = ops::linear(x.to(A.scalar_type()), A, {});
    y.narrow(-1, first, B.size(0)).add_(ops::linear(low, B, {}), scaling);
  }
  return y;
}

Linear Linear::rows(int64_t first, int64_t n) const {
  Linear out(weight_.narrow(0, first, n), bias_.defined() ? bias_.narrow(0, first, n) : bias_);
  for (const auto& [A, B, scaling, at] : additions_) {
    const int64_t begin = std::max(first, at), end = std::min(first + n, at + B.size(0));
    if (begin < end)
      out.additions_.push_back({A, B.narrow(0, begin - at, end - begin), scaling, begin - first});
  }
  return out;
}

torch::Tensor Linear::dense() const {
  if (additions_.empty()) return weight_;
  auto W = weight_.clone();
  for (const auto& [A, B, scaling, first] : additions_)
    W.narrow(0, first, B.size(0)).add_(at::mm(B, A), scaling);
  return W;
}

int64_t Linear::numel() const {
  int64_t n = 0;
  for_each_tensor(*this, "", [&](const auto&, const torch::Tensor& t) { n += t.numel(); });
  return n;
}

int64_t Linear::nbytes() const {
  int64_t n = 0;
  for_each_tensor(*this, "",
                  [&](const auto&, const torch::Tensor& t) { n += static_cast<int64_t>(t.nbytes()); });
  return n;
}

}  // namespace introspect::nn
