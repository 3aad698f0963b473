#include "introspect/ops/logistic_regression.h"

#include <map>
#include <stdexcept>
#include <vector>

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect::ops {
namespace {

using torch::Tensor;

constexpr double kCurvature = 0.25;     // the largest p (1 - p)
constexpr int kMostTries = 12;          // of a line search
constexpr double kLineTolerance = 0.1;  // of the slope along a direction, where a line search ends
constexpr double kAcceptable = 1e-3;    // of the gradient, where a search that ran out of steps is no failure

/// The inverse of C^-1 I + kCurvature X^T X, through the smaller Gram matrix.
class Preconditioner {
 public:
  Preconditioner(const Tensor& x_ND, const Tensor& gram, double C) : x_ND_(x_ND), C_(C) {
    const bool few_rows = x_ND.size(0) < x_ND.size(1);
    auto matrix = few_rows ? C * gram : kCurvature * gram;
    matrix.diagonal().add_(few_rows ? 1 / kCurvature : 1 / C);
    auto& inverse = few_rows ? inverse_NN_ : inverse_DD_;
    inverse = at::cholesky_inverse(at::linalg_cholesky(matrix));
  }

  Tensor operator()(const Tensor& g_DQ) const {
    if (inverse_DD_.defined()) return inverse_DD_.mm(g_DQ);
    return C_ * g_DQ - (C_ * C_) * x_ND_.t().mm(inverse_NN_.mm(x_ND_.mm(g_DQ)));
  }

 private:
  Tensor x_ND_, inverse_DD_, inverse_NN_;
  double C_;
};

/// The problems still searched for. Columns of Q are problems times K; sums over k are of one problem.
struct Search {
  Tensor place_P;                                      // int64, of each in the result
  Tensor mask_NP1, target_NPK, penalty_DP1, C_P;       // penalty: s^2 / C
  Tensor w_DPK, b_PK, z_NPK, p_NPK;                    // weights, logits and probabilities
  Tensor g_DPK, g_b_PK, s_DPK, s_b_PK, d_DPK, d_b_PK;  // gradient, preconditioned gradient, direction
  Tensor inner_P, first_P;                             // g.s, and at the start
  Tensor intercept_P1;                                 // the preconditioner of the intercept

  std::vector<Tensor*> of_problems_first() {
    return {&place_P, &C_P, &b_PK, &g_b_PK, &s_b_PK, &d_b_PK, &inner_P, &first_P, &intercept_P1};
  }
  std::vector<Tensor*> of_problems_second() {
    return {&mask_NP1, &target_NPK, &penalty_DP1, &w_DPK, &z_NPK, &p_NPK, &g_DPK, &s_DPK, &d_DPK};
  }
};

Tensor probabilities(const Tensor& z_NPK) {
  return z_NPK.size(2) == 1 ? z_NPK.sigmoid() : z_NPK.softmax(2);
}

Tensor over_problem(const Tensor& x_DPK, const Tensor& y_DPK) {
  return (x_DPK * y_DPK).sum({0, 2});
}

/// Slope and curvature of the loss along a direction in which the logits move by q and the weights by d.
struct Along {
  Tensor slope_P, curvature_P;
};

Along along(const Search& s, const Tensor& p_NPK, const Tensor& q_NPK, const Tensor& t_P, const Tensor& wd_P,
            const Tensor& dd_P) {
  const auto masked = s.mask_NP1 * q_NPK;
  const auto pq = p_NPK * q_NPK;
  auto bend_P = (p_NPK * masked * q_NPK).sum({0, 2});
  bend_P = bend_P - (p_NPK.size(2) == 1 ? (pq * pq * s.mask_NP1).sum({0, 2})
                                        : (pq.sum(2, /*keepdim=*/true).square() * s.mask_NP1).sum({0, 2}));
  return {over_problem(p_NPK - s.target_NPK, masked) + wd_P + t_P * dd_P, bend_P + dd_P};
}

class Solver {
 public:
  Solver(const Tensor& x_ND, const Tensor& labels_PN, const Tensor& C_P, const Tensor& penalty_PD,
         const LogisticOptions& options)
      : x_ND_(x_ND), options_(options) {
    const int64_t P = labels_PN.size(0), D = x_ND.size(1), K = options.n_classes == 2 ? 1 : options.n_classes;
    const auto like = x_ND.options();
    s_.place_P = torch::arange(P);
    s_.C_P = C_P;
    const auto labels_NP = labels_PN.t();
    s_.mask_NP1 = (labels_NP >= 0).to(like).unsqueeze(2);
    s_.target_NPK = K == 1 ? (labels_NP == 1).to(like).unsqueeze(2)
                           : (labels_NP.unsqueeze(2) == torch::arange(K)).to(like);
    s_.penalty_DP1 = (penalty_PD / C_P.unsqueeze(1)).t().to(like).unsqueeze(2);
    s_.w_DPK = torch::zeros({D, P, K}, like);
    s_.b_PK = torch::zeros({P, K}, like);
    s_.z_NPK = torch::zeros({x_ND.size(0), P, K}, like);
    s_.p_NPK = probabilities(s_.z_NPK);
    s_.intercept_P1 = 1 / (kCurvature * s_.mask_NP1.sum(0)).clamp_min(1);
    make_preconditioners();
    result_ = {torch::zeros({P, K, D}, torch::kFloat64), torch::zeros({P, K}, torch::kFloat64)};
  }

  LogisticFits run() {
    gradient();
    precondition();
    s_.inner_P = inner(s_.s_DPK, s_.s_b_PK);
    s_.first_P = s_.inner_P.clone();
    s_.d_DPK = -s_.s_DPK;
    s_.d_b_PK = -s_.s_b_PK;
    for (int64_t step = 0; step < options_.most_steps; ++step) {
      if (finish(options_.tolerance)) return result_;
      move();
      const auto old_s_DPK = s_.s_DPK, old_s_b_PK = s_.s_b_PK;
      gradient();
      precondition();
      const auto now_P = inner(s_.s_DPK, s_.s_b_PK);
      const auto beta_P = ((now_P - inner(old_s_DPK, old_s_b_PK)) / s_.inner_P).clamp_min(0);
      s_.inner_P = now_P;
      s_.d_DPK = beta_P.view({1, -1, 1}) * s_.d_DPK - s_.s_DPK;
      s_.d_b_PK = beta_P.unsqueeze(1) * s_.d_b_PK - s_.s_b_PK;
      // A direction that does not descend begins anew with the steepest one.
      const auto descends_P = inner(s_.d_DPK, s_.d_b_PK) < 0;
      s_.d_DPK = at::where(descends_P.view({1, -1, 1}), s_.d_DPK, -s_.s_DPK);
      s_.d_b_PK = at::where(descends_P.unsqueeze(1), s_.d_b_PK, -s_.s_b_PK);
    }
    check<std::invalid_argument>(finish(std::max(options_.tolerance, kAcceptable)),
                                 "logistic_regressions: the fit must converge in ", options_.most_steps,
                                 " steps, and did not with C = ", s_.C_P.max().item<double>(),
                                 ": a smaller C regularises more");
    return result_;
  }

 private:
  void make_preconditioners() {
    const auto rows = x_ND_.size(0) < x_ND_.size(1) ? x_ND_.mm(x_ND_.t()) : x_ND_.t().mm(x_ND_);
    for (int64_t i = 0; i < s_.C_P.size(0); ++i) {
      const double C = s_.C_P[i].item<double>();
      if (!preconditioners_.contains(C)) preconditioners_.emplace(C, Preconditioner(x_ND_, rows, C));
    }
    group();
  }

  /// Which problems have which C.
  void group() {
    groups_.clear();
    for (const auto& [C, preconditioner] : preconditioners_)
      if (const auto of_C = (s_.C_P == C).nonzero().flatten(); of_C.numel() > 0)
        groups_.emplace_back(&preconditioner, of_C);
  }

  int64_t K() const { return s_.b_PK.size(1); }

  /// Rows times directions, [N, P, K].
  Tensor product(const Tensor& d_DPK) const {
    return x_ND_.mm(d_DPK.flatten(1)).view({x_ND_.size(0), d_DPK.size(1), d_DPK.size(2)});
  }

  void gradient() {
    const auto error_NPK = s_.mask_NP1 * (s_.p_NPK - s_.target_NPK);
    s_.g_DPK = x_ND_.t().mm(error_NPK.flatten(1)).view_as(s_.w_DPK) + s_.penalty_DP1 * s_.w_DPK;
    s_.g_b_PK = error_NPK.sum(0);
  }

  void precondition() {
    s_.s_b_PK = s_.intercept_P1 * s_.g_b_PK;
    if (groups_.size() == 1) {
      s_.s_DPK = (*groups_[0].first)(s_.g_DPK.flatten(1)).view_as(s_.g_DPK);
      return;
    }
    s_.s_DPK = at::empty_like(s_.g_DPK);
    for (const auto& [preconditioner, of_C] : groups_) {
      const auto g_DpK = s_.g_DPK.index_select(1, of_C);
      s_.s_DPK.index_copy_(1, of_C, (*preconditioner)(g_DpK.flatten(1)).view_as(g_DpK));
    }
  }

  Tensor inner(const Tensor& d_DPK, const Tensor& d_b_PK) const {
    return over_problem(s_.g_DPK, d_DPK) + (s_.g_b_PK * d_b_PK).sum(1);
  }

  /// Goes to where the loss is lowest along the direction.
  void move() {
    const auto q_NPK = product(s_.d_DPK) + s_.d_b_PK;
    const auto wd_P = over_problem(s_.penalty_DP1 * s_.w_DPK, s_.d_DPK);
    const auto dd_P = over_problem(s_.penalty_DP1 * s_.d_DPK, s_.d_DPK);
    auto t_P = torch::zeros_like(wd_P), low_P = torch::zeros_like(wd_P);
    auto high_P = torch::full_like(wd_P, std::numeric_limits<double>::infinity());
    auto at_t = along(s_, s_.p_NPK, q_NPK, t_P, wd_P, dd_P);
    const auto enough_P = kLineTolerance * at_t.slope_P.abs();
    auto z_NPK = s_.z_NPK;
    for (int i = 0; i < kMostTries; ++i) {
      const auto newton_P = t_P - at_t.slope_P / at_t.curvature_P.clamp_min(1e-30);
      const auto between_P = at::where(high_P.isinf(), 2 * low_P.clamp_min(1), (low_P + high_P) / 2);
      const auto inside_P = (newton_P > low_P).logical_and(newton_P < high_P);
      // Where the slope is small already t stays, so that problems that are done are not moved on.
      const auto next_P = at::where(inside_P, newton_P, between_P);
      t_P = i == 0 ? next_P : at::where(at_t.slope_P.abs() <= enough_P, t_P, next_P);
      z_NPK = s_.z_NPK + t_P.view({1, -1, 1}) * q_NPK;
      s_.p_NPK = probabilities(z_NPK);
      at_t = along(s_, s_.p_NPK, q_NPK, t_P, wd_P, dd_P);
      low_P = at::where(at_t.slope_P < 0, t_P, low_P);
      high_P = at::where(at_t.slope_P < 0, high_P, t_P);
      if ((at_t.slope_P.abs() <= enough_P).all().item<bool>()) break;
    }
    s_.z_NPK = z_NPK;
    s_.w_DPK = s_.w_DPK + t_P.view({1, -1, 1}) * s_.d_DPK;
    s_.b_PK = s_.b_PK + t_P.unsqueeze(1) * s_.d_b_PK;
  }

  /// Puts problems that have converged into the result and goes on with the others; true when none is left.
  bool finish(double tolerance) {
    const auto done_P = s_.inner_P <= tolerance * tolerance * s_.first_P;
    const auto done = done_P.nonzero().flatten();
    if (done.numel() == 0) return false;
    const auto places = s_.place_P.index_select(0, done);
    result_.weights_PKD.index_copy_(0, places,
                                    s_.w_DPK.index_select(1, done).permute({1, 2, 0}).to(torch::kFloat64));
    result_.bias_PK.index_copy_(0, places, s_.b_PK.index_select(0, done).to(torch::kFloat64));
    const auto left = done_P.logical_not().nonzero().flatten();
    for (auto* tensor : s_.of_problems_first()) *tensor = tensor->index_select(0, left);
    for (auto* tensor : s_.of_problems_second()) *tensor = tensor->index_select(1, left);
    group();
    return left.numel() == 0;
  }

  Tensor x_ND_;
  LogisticOptions options_;
  Search s_;
  std::map<double, Preconditioner> preconditioners_;
  std::vector<std::pair<const Preconditioner*, Tensor>> groups_;
  LogisticFits result_;
};

void check_problems(const Tensor& rows_ND, const Tensor& labels_PN, const Tensor& C_P, const Tensor& scale_PD,
                    const LogisticOptions& options) {
  check<ShapeError>(rows_ND.dim() == 2 && rows_ND.is_floating_point() && rows_ND.size(0) > 0,
                    "logistic_regressions: rows must be [N, D] of a float dtype, got ", rows_ND.sizes());
  check<ShapeError>(labels_PN.dim() == 2 && labels_PN.size(1) == rows_ND.size(0) &&
                        labels_PN.scalar_type() == torch::kInt64,
                    "logistic_regressions: labels must be int64 [P, ", rows_ND.size(0), "], got ",
                    labels_PN.sizes());
  check<ShapeError>(C_P.dim() == 1 && C_P.size(0) == labels_PN.size(0), "logistic_regressions: C must be [",
                    labels_PN.size(0), "], got ", C_P.sizes());
  check<ShapeError>(!scale_PD.defined() || (scale_PD.dim() == 2 && scale_PD.size(0) == labels_PN.size(0) &&
                                            scale_PD.size(1) == rows_ND.size(1)),
                    "logistic_regressions: scale must be [", labels_PN.size(0), ", ", rows_ND.size(1), "]");
  check<std::invalid_argument>(options.n_classes >= 2,
                               "logistic_regressions: there must be two classes or more, got ",
                               options.n_classes);
  check<std::invalid_argument>(
      labels_PN.numel() == 0 ||
          (labels_PN.min().item<int64_t>() >= -1 && labels_PN.max().item<int64_t>() < options.n_classes),
      "logistic_regressions: labels must be -1 to ", options.n_classes - 1);
  check<std::invalid_argument>(C_P.isfinite().logical_and(C_P > 0).all().item<bool>(),
                               "logistic_regressions: C must be finite and above 0");
  check<std::invalid_argument>(rows_ND.isfinite().all().item<bool>(),
                               "logistic_regressions: the rows must be finite");
}

}  // namespace

LogisticFits logistic_regressions(const Tensor& rows_ND, const Tensor& labels_PN, const Tensor& C_P,
                                  const Tensor& scale_PD, const LogisticOptions& options) {
  const torch::NoGradGuard no_grad;
  check_problems(rows_ND, labels_PN, C_P, scale_PD, options);
  const auto x_ND = rows_ND.scalar_type() == torch::kFloat64 ? rows_ND : rows_ND.to(torch::kFloat32);
  const auto [std_D, mean_D] = at::std_mean(x_ND.to(torch::kFloat64), {0}, /*correction=*/at::Scalar(0));
  const auto safe_D = at::where(std_D > 0, std_D, 1.0);
  const auto standard_ND = ((x_ND - mean_D) / safe_D).to(x_ND.scalar_type()).contiguous();
  const auto C64_P = C_P.to(torch::kFloat64);
  const auto ones_PD = torch::ones({labels_PN.size(0), x_ND.size(1)}, torch::kFloat64);
  const auto ratio_PD = scale_PD.defined() ? scale_PD.to(torch::kFloat64) / safe_D : ones_PD / safe_D;
  auto fits = Solver(standard_ND, labels_PN, C64_P, ratio_PD.square(), options).run();
  // Back from the standardised rows; a column that never varies has no weight.
  fits.weights_PKD = at::where(std_D > 0, fits.weights_PKD / safe_D, 0.0);
  fits.bias_PK = fits.bias_PK - fits.weights_PKD.matmul(mean_D);
  return fits;
}

}  // namespace introspect::ops
