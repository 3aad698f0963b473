#include "introspect/steering/diagnostics.h"

#include <stdexcept>

#include <torch/torch.h>

#include "introspect/core/check.h"

namespace introspect::steering {
namespace {

struct HeldOut {
  double accuracy;
  double auc;
};

/// One fold by the direction of the rest; projections that are equal count half.
HeldOut judge(const torch::Tensor& direction_D, const torch::Tensor& rest_middle_D,
              const torch::Tensor& positive_ND, const torch::Tensor& negative_ND) {
  const auto threshold = rest_middle_D.dot(direction_D);
  const auto pos_N = positive_ND.mv(direction_D), neg_N = negative_ND.mv(direction_D);
  const auto right = (torch::sign(pos_N - threshold) - torch::sign(neg_N - threshold)).mean().item<double>();
  const auto above = torch::sign(pos_N.unsqueeze(1) - neg_N.unsqueeze(0)).mean().item<double>();
  return {0.5 + right / 4, 0.5 + above / 2};
}

std::optional<HeldOut> cross_validate(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                                      Method method, int64_t folds, uint64_t seed) {
  const auto n_pairs = positive_ND.size(0);
  if (folds == 0 || n_pairs < 2 * folds) return std::nullopt;
  const auto fold_of = torch::arange(n_pairs, torch::kInt64).remainder(folds);
  HeldOut sum{0.0, 0.0};
  for (int64_t fold = 0; fold < folds; ++fold) {
    const auto inside = fold_of.eq(fold).nonzero().squeeze(1),
               outside = fold_of.ne(fold).nonzero().squeeze(1);
    const auto rest_pos = positive_ND.index_select(0, outside),
               rest_neg = negative_ND.index_select(0, outside);
    torch::Tensor direction_D;
    try {
      direction_D = direction_of_pairs(rest_pos, rest_neg, method, nullptr, seed).to(torch::kFloat64);
    } catch (const std::invalid_argument&) {  // these pairs differ nowhere
      return std::nullopt;
    }
    const auto one = judge(direction_D, (rest_pos.mean(0) + rest_neg.mean(0)) / 2,
                           positive_ND.index_select(0, inside), negative_ND.index_select(0, inside));
    const auto weight = static_cast<double>(inside.numel()) / static_cast<double>(n_pairs);
    sum.accuracy += weight * one.accuracy;
    sum.auc += weight * one.auc;
  }
  return sum;
}

}  // namespace

LayerDiagnostics diagnose(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                          const torch::Tensor& direction_D, Method method, int64_t folds, uint64_t seed) {
  check<std::invalid_argument>(folds == 0 || folds >= 2, "diagnose: folds must be 0 or at least 2, got ",
                               folds);
  check<ShapeError>(
      positive_ND.dim() == 2 && positive_ND.sizes() == negative_ND.sizes() && direction_D.dim() == 1 &&
          direction_D.size(0) == positive_ND.size(1),
      "diagnose: both sides must be [pairs, d_model] of one shape and the direction [d_model], got ",
      positive_ND.sizes(), ", ", negative_ND.sizes(), " and ", direction_D.sizes());
  const auto pos_ND = positive_ND.to(torch::kCPU, torch::kFloat64);
  const auto neg_ND = negative_ND.to(torch::kCPU, torch::kFloat64);
  const auto direction = direction_D.to(torch::kCPU, torch::kFloat64);
  const auto difference_ND = pos_ND - neg_ND;
  const auto projections_N = difference_ND.mv(direction / direction.norm());
  LayerDiagnostics out;
  out.explained_variance = (projections_N.square().sum() / difference_ND.square().sum()).item<double>();
  out.sign_agreement = projections_N.gt(0).to(torch::kFloat64).mean().item<double>();
  if (const auto held_out = cross_validate(pos_ND, neg_ND, method, folds, seed)) {
    out.accuracy = held_out->accuracy;
    out.auc = held_out->auc;
  }
  return out;
}

}  // namespace introspect::steering
