#include "introspect/analysis/probe_fit.h"

#include <cmath>
#include <map>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/ops/logistic_regression.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;

constexpr double kSmallestVariance =
    1e-3;  // of the covariance within classes, as geometry-of-truth's pinv has it

bool standardises(const ProbeFitOptions& options) {
  return options.standardise.value_or(options.kind == ProbeKind::kLogistic ||
                                      options.kind == ProbeKind::kRidge);
}

/// The scaler of a fit: mean and standard deviation over rows, 1 where nothing varies.
std::pair<Tensor, Tensor> scaler(const Tensor& x_ND, bool standardise) {
  const auto [std_D, mean_D] = at::std_mean(x_ND, {0}, /*correction=*/at::Scalar(0));
  return {mean_D, standardise ? at::where(std_D > 0, std_D, 1.0) : at::ones_like(std_D)};
}

/// Standard deviations [M, D] over sets of rows.
Tensor scales_of(const Tensor& x_ND, const Tensor& rows_MN) {
  const auto mask_MN = rows_MN.to(x_ND.scalar_type());
  const auto n_M1 = mask_MN.sum(1, /*keepdim=*/true);
  const auto centred_ND = x_ND - x_ND.mean(0, /*keepdim=*/true);
  const auto mean_MD = mask_MN.mm(centred_ND) / n_M1;
  const auto variance_MD = mask_MN.mm(centred_ND.square()) / n_M1 - mean_MD.square();
  const auto std_MD = variance_MD.clamp_min(0).sqrt();
  return at::where(std_MD > 0, std_MD, 1.0);
}

ProbeWeights logistic(const Tensor& x_ND, const ProbeProblems& of, const ProbeFitOptions& options,
                      double tolerance, const ProbeWeights& start) {
  std::vector<int64_t> rows, labels;
  std::vector<double> C;
  for (const auto& problem : of.problems) {
    rows.push_back(problem.rows);
    labels.push_back(problem.labels);
    C.push_back(problem.C);
  }
  const auto rows_P = torch::tensor(rows, torch::kInt64);
  const auto labels_PN = of.labels_YN.index_select(0, torch::tensor(labels, torch::kInt64))
                             .masked_fill(of.rows_MN.index_select(0, rows_P).logical_not(), -1);
  Tensor scale_PD;
  if (standardises(options)) scale_PD = scales_of(x_ND, of.rows_MN).index_select(0, rows_P);
  auto fits = ops::logistic_regressions(x_ND, labels_PN, torch::tensor(C, torch::kFloat64), scale_PD,
                                        {of.n_classes, tolerance}, {start.weights_PKD, start.bias_PK});
  return {fits.weights_PKD, fits.bias_PK};
}

/// One-hot labels as 1 and -1 (ridge's targets); of two classes the second one's only.
Tensor targets(const Tensor& labels_YN, int64_t n_classes) {
  const auto one_hot = (labels_YN.unsqueeze(2) == torch::arange(n_classes)).to(torch::kFloat64) * 2 - 1;
  return n_classes == 2 ? one_hot.slice(2, 1) : one_hot;
}

ProbeWeights ridge(const Tensor& x_ND, const ProbeProblems& of, const ProbeFitOptions& options) {
  const auto targets_YNK = targets(of.labels_YN, of.n_classes);
  const int64_t K = targets_YNK.size(2), D = x_ND.size(1), P = static_cast<int64_t>(of.problems.size());
  ProbeWeights out{torch::zeros({P, K, D}, torch::kFloat64), torch::zeros({P, K}, torch::kFloat64)};
  std::map<std::pair<int64_t, double>, std::vector<int64_t>>
      shared;  // one factor for all labels of some rows
  for (int64_t i = 0; i < P; ++i) {
    const auto& problem = of.problems[static_cast<size_t>(i)];
    shared[{problem.rows, problem.C}].push_back(i);
  }
  for (const auto& [key, places] : shared) {
    const auto [rows, C] = key;
    const auto chosen = of.rows_MN[rows].nonzero().flatten();
    const auto x_nD = x_ND.index_select(0, chosen);
    const auto [mean_D, scale_D] = scaler(x_nD, standardises(options));
    const auto z_nD = (x_nD - mean_D) / scale_D;
    const bool few_rows = z_nD.size(0) < D;
    auto gram = few_rows ? z_nD.mm(z_nD.t()) : z_nD.t().mm(z_nD);
    gram.diagonal().add_(1 / C);
    const auto factor = at::linalg_cholesky(gram);
    for (const int64_t place : places) {
      const auto& problem = of.problems[static_cast<size_t>(place)];
      const auto y_nK = targets_YNK[problem.labels].index_select(0, chosen);
      const auto y_mean_K = y_nK.mean(0);
      const auto right = y_nK - y_mean_K;
      const auto w_DK = few_rows ? z_nD.t().mm(at::cholesky_solve(right, factor))
                                 : at::cholesky_solve(z_nD.t().mm(right), factor);
      const auto raw_KD = w_DK.t() / scale_D;
      out.weights_PKD[place].copy_(raw_KD);
      out.bias_PK[place].copy_(y_mean_K - raw_KD.mv(mean_D));
    }
  }
  return out;
}

/// The pseudo-inverse of the covariance of rows (about zero) times vectors [D, K], by the smaller Gram matrix.
Tensor whitened(const Tensor& x_nD, const Tensor& vectors_DK) {
  const double n = static_cast<double>(x_nD.size(0));
  const bool few_rows = x_nD.size(0) < x_nD.size(1);
  const auto [values, vectors] = at::linalg_eigh((few_rows ? x_nD.mm(x_nD.t()) : x_nD.t().mm(x_nD)) / n);
  const auto kept = (values > kSmallestVariance).nonzero().flatten();
  const auto l = values.index_select(0, kept);
  auto basis_DR = vectors.index_select(1, kept);
  if (few_rows) basis_DR = x_nD.t().mm(basis_DR) / (l * n).sqrt();
  return basis_DR.mm(basis_DR.t().mm(vectors_DK) / l.unsqueeze(1));
}

ProbeWeights mass_mean(const Tensor& x_ND, const ProbeProblems& of, const ProbeFitOptions& options) {
  const int64_t D = x_ND.size(1), P = static_cast<int64_t>(of.problems.size());
  const int64_t K = of.n_classes == 2 ? 1 : of.n_classes;
  ProbeWeights out{torch::zeros({P, K, D}, torch::kFloat64), torch::zeros({P, K}, torch::kFloat64)};
  for (int64_t i = 0; i < P; ++i) {
    const auto& problem = of.problems[static_cast<size_t>(i)];
    const auto chosen = of.rows_MN[problem.rows].nonzero().flatten();
    const auto labels_n = of.labels_YN[problem.labels].index_select(0, chosen);
    const auto x_nD = x_ND.index_select(0, chosen);
    const auto [mean_D, scale_D] = scaler(x_nD, standardises(options));
    const auto z_nD = (x_nD - mean_D) / scale_D;
    const auto one_hot_nC = (labels_n.unsqueeze(1) == torch::arange(of.n_classes)).to(torch::kFloat64);
    const auto means_CD = one_hot_nC.t().mm(z_nD) / one_hot_nC.sum(0).unsqueeze(1);
    // Of two classes the difference, and a boundary halfway between the means.
    auto directions_KD = K == 1 ? means_CD.slice(0, 1) - means_CD.slice(0, 0, 1) : means_CD;
    const auto middle_KD = K == 1 ? means_CD.mean(0, /*keepdim=*/true) : means_CD / 2;
    if (options.kind == ProbeKind::kMassMeanCovariance)
      directions_KD = whitened(z_nD - one_hot_nC.mm(means_CD), directions_KD.t()).t();
    const auto raw_KD = directions_KD / scale_D;
    out.weights_PKD[i].copy_(raw_KD);
    out.bias_PK[i].copy_(-(directions_KD * middle_KD).sum(1) - raw_KD.mv(mean_D));
  }
  return out;
}

}  // namespace

ProbeWeights fit_problems(const Tensor& activations_ND, const ProbeProblems& problems,
                          const ProbeFitOptions& options, double tolerance, const ProbeWeights& start) {
  const torch::NoGradGuard no_grad;
  for (const auto& problem : problems.problems)
    check<std::invalid_argument>(std::isfinite(problem.C) && problem.C > 0,
                                 "probe: C must be finite and above 0, got ", problem.C);
  switch (options.kind) {
    case ProbeKind::kLogistic:
      return logistic(activations_ND, problems, options, tolerance, start);
    case ProbeKind::kRidge:
      return ridge(activations_ND.to(torch::kFloat64), problems, options);
    case ProbeKind::kMassMean:
    case ProbeKind::kMassMeanCovariance:
      return mass_mean(activations_ND.to(torch::kFloat64), problems, options);
    case ProbeKind::kDirection:
      break;
  }
  throw std::invalid_argument("probe: a probe of kind direction is not fitted; probe_of_direction makes one");
}

Probe fit_probe(const Tensor& activations_ND, const std::vector<int64_t>& labels,
                const std::vector<std::string>& classes, const ProbeFitOptions& options,
                const ProbeWeights& start) {
  const torch::NoGradGuard no_grad;
  check<ShapeError>(activations_ND.dim() == 2 && activations_ND.is_floating_point(),
                    "fit_probe: activations must be [N, D] of a float dtype, got ", activations_ND.sizes());
  const int64_t N = activations_ND.size(0), n_classes = static_cast<int64_t>(classes.size());
  check<ShapeError>(static_cast<int64_t>(labels.size()) == N, "fit_probe: every row must have a label, got ",
                    labels.size(), " labels for ", N, " rows");
  check<std::invalid_argument>(n_classes >= 2, "fit_probe: there must be two classes or more, got ",
                               n_classes);
  std::vector<int64_t> counts(classes.size());
  for (const int64_t label : labels) {
    check<std::invalid_argument>(label >= 0 && label < n_classes, "fit_probe: labels must be 0 to ",
                                 n_classes - 1, ", got ", label);
    ++counts[static_cast<size_t>(label)];
  }
  for (size_t k = 0; k < counts.size(); ++k)
    check<std::invalid_argument>(counts[k] > 0, "fit_probe: every class must have a text, and '", classes[k],
                                 "' has none");
  const auto x_ND = activations_ND.detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  const auto bad = x_ND.isfinite().all(1).logical_not().nonzero().flatten();
  check<std::invalid_argument>(bad.numel() == 0,
                               "fit_probe: the activations must be finite, and those of text ",
                               bad.numel() == 0 ? -1 : bad[0].item<int64_t>(), " are not");
  const ProbeProblems problems{torch::ones({1, N}, torch::kBool),
                               torch::tensor(labels, torch::kInt64).unsqueeze(0),
                               {{0, 0, options.C}},
                               n_classes};
  const auto fit = fit_problems(x_ND, problems, options, 1e-9, start);
  Probe out;
  out.kind = options.kind;
  std::tie(out.mean_D, out.scale_D) = scaler(x_ND, standardises(options));
  const auto raw_KD = fit.weights_PKD[0];
  out.weights_KD = raw_KD * out.scale_D;
  out.bias_K = fit.bias_PK[0] + raw_KD.mv(out.mean_D);
  out.classes = classes;
  out.n_texts = N;
  const bool has_penalty = options.kind == ProbeKind::kLogistic || options.kind == ProbeKind::kRidge;
  out.C = has_penalty ? options.C : 0;
  return out;
}

}  // namespace introspect::analysis
