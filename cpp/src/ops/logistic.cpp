#include "ops/logistic.h"

#include <stdexcept>

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect::ops {
namespace {

constexpr int kMaxSteps = 100;
constexpr double kGradient = 1e-9;  // of the largest gradient's size, that at zero

/// An orthonormal basis of the span of few rows, [K, D]: the penalty keeps the weights in it.
torch::Tensor row_space(const torch::Tensor& rows_ND) {
  return std::get<2>(torch::linalg_svd(rows_ND, /*full_matrices=*/false));
}

}  // namespace

torch::Tensor logistic_weights(const torch::Tensor& rows_ND, const torch::Tensor& labels_N) {
  // The intercept takes up any shift of the rows, and centred ones are better conditioned.
  const auto centred_ND = rows_ND - rows_ND.mean(0, /*keepdim=*/true);
  const bool few_rows = rows_ND.size(0) < rows_ND.size(1);
  const auto basis_KD = few_rows ? row_space(centred_ND) : torch::Tensor();
  const auto x_NK = few_rows ? centred_ND.mm(basis_KD.t()) : centred_ND;
  const auto design = torch::cat({x_NK, torch::ones({x_NK.size(0), 1}, torch::kFloat64)}, 1);
  auto penalty = torch::ones({design.size(1)}, torch::kFloat64);
  penalty[-1] = 0.0;

  const auto loss = [&](const torch::Tensor& w) {
    const auto logits = design.mv(w);
    return (at::softplus(logits) - labels_N * logits).sum().item<double>() +
           0.5 * (penalty * w).dot(w).item<double>();
  };
  auto w = torch::zeros({design.size(1)}, torch::kFloat64);
  auto current = loss(w);
  double first = 0.0;
  for (int step = 0; step < kMaxSteps; ++step) {
    const auto p = design.mv(w).sigmoid();
    const auto gradient = design.t().mv(p - labels_N) + penalty * w;
    const auto size = gradient.norm().item<double>();
    if (step == 0) first = size;
    if (size <= kGradient * first) {
      const auto weights = w.slice(0, 0, -1);
      return few_rows ? basis_KD.t().mv(weights) : weights;
    }
    // A floor under p (1 - p) keeps the intercept's row of the Hessian definite where all rows are told apart.
    const auto curvature = (p * (1 - p)).clamp_min(1e-12);
    const auto hessian = design.t().mm(design * curvature.unsqueeze(1)) + penalty.diag();
    const auto newton =
        torch::cholesky_solve(gradient.unsqueeze(1), torch::linalg_cholesky(hessian)).squeeze(1);
    double scale = 1.0;
    auto next = w - newton;
    auto reached = loss(next);
    // Near the minimum the loss changes by less than its rounding.
    while (!(reached <= current * (1 + 1e-14)) && scale > 1e-6) {
      scale /= 2;
      next = w - scale * newton;
      reached = loss(next);
    }
    w = next;
    current = reached;
  }
  throw std::invalid_argument(
      concat("logistic: the regression must converge in ", kMaxSteps, " Newton steps, and did not"));
}

}  // namespace introspect::ops
