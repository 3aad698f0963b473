#include "introspect/ops/logistic_regression.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect::ops {
namespace {

using torch::Tensor;

constexpr int kMostTries = 12;          // of a line search
constexpr double kLineTolerance = 0.1;  // of the slope along a direction, where a line search ends
constexpr double kAcceptable = 1e-3;    // of the gradient, where a search that ran out of steps is no failure
constexpr std::array<int64_t, 2> kRenewals = {4, 40};  // steps after which the preconditioners are made anew
constexpr double kSmallest = 1e-8;                     // of the curvature that a row has in them

/// The inverse of a positive matrix, in float32 where that is exact enough.
Tensor inverse_of(const Tensor& matrix) {
  const auto [factor, info] = at::linalg_cholesky_ex(matrix);
  if (info.item<int64_t>() == 0) return at::cholesky_inverse(factor);
  return at::cholesky_inverse(at::linalg_cholesky(matrix.to(torch::kFloat64))).to(matrix.scalar_type());
}

/// The inverse of C^-1 I + X^T S X for curvatures S of the rows, through the smaller of two matrices, in float32.
class Preconditioner {
 public:
  /// kernel_NN: X X^T if there are fewer rows than columns.
  Preconditioner(const Tensor& x_ND, const Tensor& kernel_NN, const Tensor& curvature_N, double C)
      : x_ND_(x_ND), C_(C) {
    const auto root_N = curvature_N.clamp_min(kSmallest).sqrt();
    if (kernel_NN.defined()) {
      auto matrix = C * root_N.unsqueeze(1) * kernel_NN * root_N;
      matrix.diagonal().add_(1);
      inverse_NN_ = root_N.unsqueeze(1) * inverse_of(matrix) * root_N;
    } else {
      const auto weighted_ND = x_ND * root_N.unsqueeze(1);
      auto matrix = weighted_ND.t().mm(weighted_ND);
      matrix.diagonal().add_(1 / C);
      inverse_DD_ = inverse_of(matrix);
    }
  }

  Tensor operator()(const Tensor& g_QD) const {
    const auto g = g_QD.to(torch::kFloat32);
    const auto out = inverse_DD_.defined() ? g.mm(inverse_DD_)
                                           : C_ * g - (C_ * C_) * g.mm(x_ND_.t()).mm(inverse_NN_).mm(x_ND_);
    return out.to(g_QD.scalar_type());
  }

 private:
  Tensor x_ND_, inverse_DD_, inverse_NN_;
  double C_;
};

/// The problems still searched for. Rows of a matrix are problems times K, which thin products take far quicker than
/// columns.
struct Search {
  Tensor place_P, C_P;                                 // of each in the result; float64
  Tensor mask_P1N, target_PKN, penalty_P1D;            // penalty: s^2 / C
  Tensor w_PKD, b_PK, z_PKN, p_PKN;                    // weights, logits and probabilities
  Tensor g_PKD, g_b_PK, s_PKD, s_b_PK, d_PKD, d_b_PK;  // gradient, preconditioned gradient, direction
  Tensor inner_P, first_P;                             // g.s, and what it is measured by
  Tensor intercept_P1;                                 // the preconditioner of the intercept

  std::vector<Tensor*> all() {
    return {&place_P, &C_P,   &mask_P1N, &target_PKN, &penalty_P1D, &w_PKD,
            &b_PK,    &z_PKN, &p_PKN,    &g_PKD,      &g_b_PK,      &s_PKD,
            &s_b_PK,  &d_PKD, &d_b_PK,   &inner_P,    &first_P,     &intercept_P1};
  }
};

Tensor probabilities(const Tensor& z_PKN) {
  return z_PKN.size(1) == 1 ? z_PKN.sigmoid() : z_PKN.softmax(1);
}

Tensor over_problem(const Tensor& x_PKD, const Tensor& y_PKD) {
  return (x_PKD * y_PKD).sum({1, 2});
}

/// Slope and curvature of the loss along a direction in which the logits move by q and the weights by d.
struct Along {
  Tensor slope_P, curvature_P;
};

Along along(const Search& s, const Tensor& p_PKN, const Tensor& q_PKN, const Tensor& t_P, const Tensor& wd_P,
            const Tensor& dd_P) {
  const auto masked = s.mask_P1N * q_PKN;
  const auto slope_P = over_problem(p_PKN - s.target_PKN, masked) + wd_P + t_P * dd_P;
  if (p_PKN.size(1) == 1) return {slope_P, over_problem(p_PKN * (1 - p_PKN), masked * q_PKN) + dd_P};
  const auto mean_P1N = (p_PKN * q_PKN).sum(1, /*keepdim=*/true);
  return {slope_P, over_problem(p_PKN * (q_PKN - mean_P1N), masked) + dd_P};
}

class Solver {
 public:
  Solver(const Tensor& x_ND, const Tensor& labels_PN, const Tensor& C_P, const Tensor& penalty_PD,
         const LogisticOptions& options, const LogisticFits& start)
      : x_ND_(x_ND),
        single_ND_(x_ND.to(torch::kFloat32)),
        options_(options),
        starts_(start.weights_PKD.defined()) {
    const int64_t P = labels_PN.size(0), D = x_ND.size(1), K = options.n_classes == 2 ? 1 : options.n_classes;
    const auto like = x_ND.options();
    s_.place_P = torch::arange(P);
    s_.C_P = C_P;
    s_.mask_P1N = (labels_PN >= 0).to(like).unsqueeze(1);
    s_.target_PKN = K == 1 ? (labels_PN == 1).to(like).unsqueeze(1)
                           : (labels_PN.unsqueeze(1) == torch::arange(K).unsqueeze(1)).to(like);
    s_.penalty_P1D = (penalty_PD / C_P.unsqueeze(1)).to(like).unsqueeze(1);
    s_.w_PKD = start.weights_PKD.defined() ? start.weights_PKD.to(like) : torch::zeros({P, K, D}, like);
    s_.b_PK = start.bias_PK.defined() ? start.bias_PK.to(like) : torch::zeros({P, K}, like);
    s_.z_PKN = product(s_.w_PKD) + s_.b_PK.unsqueeze(2);
    s_.p_PKN = probabilities(s_.z_PKN);
    if (single_ND_.size(0) < single_ND_.size(1)) kernel_NN_ = single_ND_.mm(single_ND_.t());
    result_ = {torch::zeros({P, K, D}, torch::kFloat64), torch::zeros({P, K}, torch::kFloat64)};
  }

  LogisticFits run() {
    renew_preconditioners();
    gradient();
    begin_anew();
    // Labels that the rows say nothing of have a gradient of about one a column, and rounding is far below that.
    s_.first_P = s_.inner_P.clamp_min(1);
    for (int64_t step = 1; step <= options_.most_steps; ++step) {
      if (finish(options_.tolerance)) return result_;
      move();
      gradient();
      if (!starts_ && std::ranges::find(kRenewals, step) != kRenewals.end()) {
        renew_preconditioners();
        begin_anew();
      } else {
        turn();
      }
    }
    check<std::invalid_argument>(finish(std::max(options_.tolerance, kAcceptable)),
                                 "logistic_regressions: the fit must converge in ", options_.most_steps,
                                 " steps, and did not with C = ", s_.C_P.max().item<double>(),
                                 ": a smaller C regularises more");
    return result_;
  }

 private:
  /// One for each C, with the mean curvature of its problems.
  void renew_preconditioners() {
    const auto curvature_P1N = s_.mask_P1N * (s_.p_PKN * (1 - s_.p_PKN)).mean(1, /*keepdim=*/true);
    s_.intercept_P1 = 1 / curvature_P1N.sum(2).clamp_min(1e-3);
    preconditioners_.clear();
    const auto [different, place_P, counts] = at::_unique2(s_.C_P, /*sorted=*/true, /*return_inverse=*/true);
    for (int64_t c = 0; c < different.size(0); ++c) {
      const auto mean_N =
          curvature_P1N.index_select(0, (place_P == c).nonzero().flatten()).mean(at::IntArrayRef{0, 1});
      const double C = different[c].item<double>();
      preconditioners_.emplace(C, Preconditioner(single_ND_, kernel_NN_, mean_N.to(torch::kFloat32), C));
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

  /// Rows times directions, [P, K, N].
  Tensor product(const Tensor& d_PKD) const {
    return d_PKD.flatten(0, 1).mm(x_ND_.t()).view({d_PKD.size(0), d_PKD.size(1), x_ND_.size(0)});
  }

  void gradient() {
    const auto error_PKN = s_.mask_P1N * (s_.p_PKN - s_.target_PKN);
    s_.g_PKD = error_PKN.flatten(0, 1).mm(x_ND_).view_as(s_.w_PKD) + s_.penalty_P1D * s_.w_PKD;
    s_.g_b_PK = error_PKN.sum(2);
  }

  void precondition() {
    s_.s_b_PK = s_.intercept_P1 * s_.g_b_PK;
    if (groups_.size() == 1) {
      s_.s_PKD = (*groups_[0].first)(s_.g_PKD.flatten(0, 1)).view_as(s_.g_PKD);
      return;
    }
    s_.s_PKD = at::empty_like(s_.g_PKD);
    for (const auto& [preconditioner, of_C] : groups_) {
      const auto g_pKD = s_.g_PKD.index_select(0, of_C);
      s_.s_PKD.index_copy_(0, of_C, (*preconditioner)(g_pKD.flatten(0, 1)).view_as(g_pKD));
    }
  }

  Tensor inner(const Tensor& d_PKD, const Tensor& d_b_PK) const {
    return over_problem(s_.g_PKD, d_PKD) + (s_.g_b_PK * d_b_PK).sum(1);
  }

  /// The steepest direction.
  void begin_anew() {
    precondition();
    s_.inner_P = inner(s_.s_PKD, s_.s_b_PK);
    s_.d_PKD = -s_.s_PKD;
    s_.d_b_PK = -s_.s_b_PK;
  }

  /// The next conjugate direction.
  void turn() {
    const auto old_s_PKD = s_.s_PKD, old_s_b_PK = s_.s_b_PK;
    precondition();
    const auto now_P = inner(s_.s_PKD, s_.s_b_PK);
    const auto beta_P = ((now_P - inner(old_s_PKD, old_s_b_PK)) / s_.inner_P).clamp_min(0);
    s_.inner_P = now_P;
    s_.d_PKD = beta_P.view({-1, 1, 1}) * s_.d_PKD - s_.s_PKD;
    s_.d_b_PK = beta_P.unsqueeze(1) * s_.d_b_PK - s_.s_b_PK;
    // One that does not descend gives way to the steepest.
    const auto descends_P = inner(s_.d_PKD, s_.d_b_PK) < 0;
    s_.d_PKD = at::where(descends_P.view({-1, 1, 1}), s_.d_PKD, -s_.s_PKD);
    s_.d_b_PK = at::where(descends_P.unsqueeze(1), s_.d_b_PK, -s_.s_b_PK);
  }

  /// Goes to where the loss is lowest along the direction.
  void move() {
    const auto q_PKN = product(s_.d_PKD) + s_.d_b_PK.unsqueeze(2);
    const auto wd_P = over_problem(s_.penalty_P1D * s_.w_PKD, s_.d_PKD);
    const auto dd_P = over_problem(s_.penalty_P1D * s_.d_PKD, s_.d_PKD);
    auto t_P = torch::zeros_like(wd_P), low_P = torch::zeros_like(wd_P);
    auto high_P = torch::full_like(wd_P, std::numeric_limits<double>::infinity());
    auto at_t = along(s_, s_.p_PKN, q_PKN, t_P, wd_P, dd_P);
    const auto enough_P = kLineTolerance * at_t.slope_P.abs();
    auto z_PKN = s_.z_PKN;
    for (int i = 0; i < kMostTries; ++i) {
      const auto newton_P = t_P - at_t.slope_P / at_t.curvature_P.clamp_min(1e-30);
      const auto between_P = at::where(high_P.isinf(), 2 * low_P.clamp_min(1), (low_P + high_P) / 2);
      const auto inside_P = (newton_P > low_P).logical_and(newton_P < high_P);
      // Where the slope is small already t stays, so that problems that are done are not moved on.
      const auto next_P = at::where(inside_P, newton_P, between_P);
      t_P = i == 0 ? next_P : at::where(at_t.slope_P.abs() <= enough_P, t_P, next_P);
      z_PKN = s_.z_PKN + t_P.view({-1, 1, 1}) * q_PKN;
      s_.p_PKN = probabilities(z_PKN);
      at_t = along(s_, s_.p_PKN, q_PKN, t_P, wd_P, dd_P);
      low_P = at::where(at_t.slope_P < 0, t_P, low_P);
      high_P = at::where(at_t.slope_P < 0, high_P, t_P);
      if ((at_t.slope_P.abs() <= enough_P).all().item<bool>()) break;
    }
    s_.z_PKN = z_PKN;
    s_.w_PKD = s_.w_PKD + t_P.view({-1, 1, 1}) * s_.d_PKD;
    s_.b_PK = s_.b_PK + t_P.unsqueeze(1) * s_.d_b_PK;
  }

  /// Puts problems that have converged into the result and goes on with the others; true when none is left.
  bool finish(double tolerance) {
    const auto done_P = s_.inner_P <= tolerance * tolerance * s_.first_P;
    const auto done = done_P.nonzero().flatten();
    if (done.numel() == 0) return false;
    const auto places = s_.place_P.index_select(0, done);
    result_.weights_PKD.index_copy_(0, places, s_.w_PKD.index_select(0, done).to(torch::kFloat64));
    result_.bias_PK.index_copy_(0, places, s_.b_PK.index_select(0, done).to(torch::kFloat64));
    const auto left = done_P.logical_not().nonzero().flatten();
    for (auto* tensor : s_.all()) *tensor = tensor->index_select(0, left);
    group();
    return left.numel() == 0;
  }

  Tensor x_ND_, single_ND_, kernel_NN_;
  LogisticOptions options_;
  bool starts_;  // near the minimum, where the curvature is known from the beginning
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
                                  const Tensor& scale_PD, const LogisticOptions& options,
                                  const LogisticFits& start) {
  const torch::NoGradGuard no_grad;
  check_problems(rows_ND, labels_PN, C_P, scale_PD, options);
  const auto x_ND = rows_ND.scalar_type() == torch::kFloat64 ? rows_ND : rows_ND.to(torch::kFloat32);
  const auto [std_D, mean_D] = at::std_mean(x_ND.to(torch::kFloat64), {0}, /*correction=*/at::Scalar(0));
  const auto safe_D = at::where(std_D > 0, std_D, 1.0);
  const auto standard_ND = ((x_ND - mean_D) / safe_D).to(x_ND.scalar_type()).contiguous();
  const auto C64_P = C_P.to(torch::kFloat64);
  const auto ones_PD = torch::ones({labels_PN.size(0), x_ND.size(1)}, torch::kFloat64);
  const auto ratio_PD = scale_PD.defined() ? scale_PD.to(torch::kFloat64) / safe_D : ones_PD / safe_D;
  LogisticFits standard_start;
  if (start.weights_PKD.defined()) {
    const int64_t K = options.n_classes == 2 ? 1 : options.n_classes;
    check<ShapeError>(start.weights_PKD.sizes() == at::IntArrayRef({labels_PN.size(0), K, x_ND.size(1)}) &&
                          start.bias_PK.sizes() == at::IntArrayRef({labels_PN.size(0), K}),
                      "logistic_regressions: the start must be [", labels_PN.size(0), ", ", K, ", ",
                      x_ND.size(1), "], got ", start.weights_PKD.sizes());
    standard_start = {start.weights_PKD * safe_D, start.bias_PK + start.weights_PKD.matmul(mean_D)};
  }
  auto fits = Solver(standard_ND, labels_PN, C64_P, ratio_PD.square(), options, standard_start).run();
  // Back from the standardised rows; a column that never varies has no weight.
  fits.weights_PKD = at::where(std_D > 0, fits.weights_PKD / safe_D, 0.0);
  fits.bias_PK = fits.bias_PK - fits.weights_PKD.matmul(mean_D);
  return fits;
}

}  // namespace introspect::ops
