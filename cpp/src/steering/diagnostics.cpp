#include "introspect/steering/diagnostics.h"

#include <stdexcept>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "steering/pairs.h"

namespace introspect::steering {
namespace {

struct HeldOut {
  double accuracy;
  double auc;
};

/// Probability that a number of `above_N` is larger than one of `below_N`; equal ones count half.
double probability_above(const torch::Tensor& above_N, const torch::Tensor& below_N) {
  const auto sorted = std::get<0>(below_N.sort());
  const auto smaller = torch::searchsorted(sorted, above_N, false, /*right=*/false).sum().item<int64_t>();
  const auto not_larger = torch::searchsorted(sorted, above_N, false, /*right=*/true).sum().item<int64_t>();
  return static_cast<double>(smaller + not_larger) / 2 /
         (static_cast<double>(above_N.numel()) * static_cast<double>(below_N.numel()));
}

/// The projections of one fold, by the middle between those of the sides of the rest; what lies on it counts half.
HeldOut judge(double middle, const torch::Tensor& positive_N, const torch::Tensor& negative_N) {
  const auto right =
      (torch::sign(positive_N - middle) - torch::sign(negative_N - middle)).mean().item<double>();
  return {0.5 + right / 4, probability_above(positive_N, negative_N)};
}

/// Pair i is in fold i mod folds: the rows of one of them, and of all others.
torch::Tensor inside(const torch::Tensor& rows, int64_t fold, int64_t folds) {
  return rows.slice(0, fold, std::nullopt, folds);
}
torch::Tensor outside(const torch::Tensor& rows, int64_t fold, int64_t folds) {
  if (folds == 2) return inside(rows, 1 - fold, 2);  // without a copy
  const auto fold_of = torch::arange(rows.size(0), torch::kInt64).remainder(folds);
  return rows.index_select(0, fold_of.ne(fold).nonzero().squeeze(1));
}

std::optional<HeldOut> cross_validate(const Pairs& pairs, const torch::Tensor& direction_D, Method method,
                                      int64_t folds, uint64_t seed) {
  if (folds == 0 || pairs.size() < 2 * folds) return std::nullopt;
  HeldOut sum{0.0, 0.0};
  for (int64_t fold = 0; fold < folds; ++fold) {
    const Pairs rest{outside(pairs.positive_ND, fold, folds), outside(pairs.negative_ND, fold, folds),
                     outside(pairs.difference_ND, fold, folds),
                     outside(pairs.difference_ND, fold, folds).square().sum().item<double>()};
    torch::Tensor axis_D;
    try {
      axis_D = direction_of(rest, method, seed, nullptr, direction_D);
    } catch (const std::invalid_argument&) {  // these pairs differ nowhere
      return std::nullopt;
    }
    const auto positive_N = pairs.positive_ND.mv(axis_D), negative_N = pairs.negative_ND.mv(axis_D);
    const auto middle =
        (outside(positive_N, fold, folds).mean() + outside(negative_N, fold, folds).mean()) / 2;
    const auto held_positive_N = inside(positive_N, fold, folds).contiguous();
    const auto one = judge(middle.item<double>(), held_positive_N, inside(negative_N, fold, folds));
    const auto weight = static_cast<double>(held_positive_N.numel()) / static_cast<double>(pairs.size());
    sum.accuracy += weight * one.accuracy;
    sum.auc += weight * one.auc;
  }
  return sum;
}

}  // namespace

LayerDiagnostics diagnose(const Pairs& pairs, const torch::Tensor& direction_D, Method method, int64_t folds,
                          uint64_t seed) {
  check<std::invalid_argument>(folds == 0 || folds >= 2, "diagnose: folds must be 0 or at least 2, got ",
                               folds);
  check<ShapeError>(direction_D.dim() == 1 && direction_D.size(0) == pairs.difference_ND.size(1),
                    "diagnose: the direction must be [", pairs.difference_ND.size(1),
                    "] as the activations are, got ", direction_D.sizes());
  const auto direction = direction_D.to(torch::kCPU, torch::kFloat64);
  const auto projections_N = pairs.difference_ND.mv(direction / direction.norm());
  LayerDiagnostics out;
  out.explained_variance = projections_N.square().sum().item<double>() / pairs.sum_of_squares;
  out.sign_agreement = projections_N.gt(0).to(torch::kFloat64).mean().item<double>();
  if (const auto held_out = cross_validate(pairs, direction, method, folds, seed)) {
    out.accuracy = held_out->accuracy;
    out.auc = held_out->auc;
  }
  return out;
}

LayerDiagnostics diagnose(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                          const torch::Tensor& direction_D, Method method, int64_t folds, uint64_t seed) {
  return diagnose(checked_pairs("diagnose", positive_ND, negative_ND), direction_D, method, folds, seed);
}

}  // namespace introspect::steering
