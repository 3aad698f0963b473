#include "introspect/steering/directions.h"

#include <cmath>
#include <map>
#include <stdexcept>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>

#include "core/dense.h"
#include "introspect/core/check.h"
#include "introspect/ops/pca.h"
#include "ops/leading.h"
#include "ops/logistic.h"
#include "steering/pairs.h"

namespace introspect::steering {
namespace {

const std::map<std::string, Method> kMethods{{"pca_center", Method::pca_center},
                                             {"pca_global_center", Method::pca_global_center},
                                             {"pca_diff", Method::pca_diff},
                                             {"pca_diff_uncentered", Method::pca_diff_uncentered},
                                             {"lat", Method::lat},
                                             {"mean_diff", Method::mean_diff},
                                             {"logistic", Method::logistic}};

constexpr int64_t kSharesKept = 8;   // of each layer's spectrum
constexpr double kAngleNear = 1e-7;  // of a component that another one is near to

torch::Tensor random_differences(const torch::Tensor& activations_ND, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto order = torch::randperm(activations_ND.size(0), generator, torch::kInt64);
  const auto shuffled_ND = activations_ND.index_select(0, order);
  return shuffled_ND.slice(0, 0, std::nullopt, 2) - shuffled_ND.slice(0, 1, std::nullopt, 2);
}

/// What the first component is taken of, and whether its rows' mean comes off first.
std::pair<torch::Tensor, bool> rows_of(Method method, const Pairs& pairs, uint64_t seed) {
  switch (method) {
    case Method::pca_global_center:
      return {torch::cat({pairs.positive_ND, pairs.negative_ND}), true};
    case Method::lat:
      return {random_differences(torch::cat({pairs.positive_ND, pairs.negative_ND}), seed), true};
    case Method::pca_diff:
      return {pairs.difference_ND, true};
    default:
      // Each pair less its midpoint is +-half its difference: PCA of all of them is that of the differences about zero.
      return {pairs.difference_ND, false};
  }
}

/// The first component of the rows, either sign, and the largest shares; no shares where it was found near another.
ops::LeadingComponent first_component(const torch::Tensor& rows_ND, bool center,
                                      const torch::Tensor& near_D) {
  if (near_D.defined()) {
    const auto x_ND = center ? rows_ND - rows_ND.mean(0, /*keepdim=*/true) : rows_ND;
    if (const auto found = ops::leading_near(x_ND, near_D, kAngleNear)) return {*found, {}};
  }
  return ops::leading_component(rows_ND, center, kSharesKept);
}

torch::Tensor mean_difference(const Pairs& pairs) {
  const auto mean_D = pairs.difference_ND.mean(0);
  check<std::invalid_argument>(mean_D.norm().item<double>() > 0,
                               "direction_of_pairs: the mean difference must not be zero");
  return mean_D;
}

torch::Tensor logistic_direction(const Pairs& pairs) {
  const auto ones_N = torch::ones({pairs.size()}, torch::kFloat64);
  const auto weights_D = ops::logistic_weights(torch::cat({pairs.positive_ND, pairs.negative_ND}),
                                               torch::cat({ones_N, torch::zeros_like(ones_N)}));
  const auto norm = weights_D.norm().item<double>();
  check<std::invalid_argument>(norm > 0,
                               "direction_of_pairs: the sides must differ in their means for a regression");
  return weights_D / norm;
}

}  // namespace

Method parse_method(const std::string& name) {
  const auto found = kMethods.find(name);
  if (found != kMethods.end()) return found->second;
  std::string names;
  for (const auto& [known, method] : kMethods) names += (names.empty() ? "" : ", ") + known;
  throw std::invalid_argument(concat("train: method must be one of ", names, ", got '", name, "'"));
}

std::string to_string(Method method) {
  for (const auto& [name, value] : kMethods)
    if (value == method) return name;
  throw std::invalid_argument("to_string: not a Method");
}

Pairs checked_pairs(const std::string& who, const torch::Tensor& positive_ND,
                    const torch::Tensor& negative_ND) {
  check_dense<ShapeError>(positive_ND, who, ": the positive side");
  check_dense<ShapeError>(negative_ND, who, ": the negative side");
  check<ShapeError>(
      positive_ND.dim() == 2 && positive_ND.sizes() == negative_ND.sizes() && positive_ND.size(0) > 0 &&
          positive_ND.is_floating_point() && negative_ND.is_floating_point(),
      who, ": both sides must be float [pairs, d_model] of one shape, got ", positive_ND.sizes(), " ",
      positive_ND.dtype(), " and ", negative_ND.sizes(), " ", negative_ND.dtype());
  Pairs out;
  out.positive_ND = positive_ND.to(torch::kCPU, torch::kFloat64);
  out.negative_ND = negative_ND.to(torch::kCPU, torch::kFloat64);
  out.difference_ND = out.positive_ND - out.negative_ND;
  const auto flat = out.difference_ND.flatten();
  out.sum_of_squares = flat.dot(flat).item<double>();
  check<std::invalid_argument>(std::isfinite(out.sum_of_squares), who,
                               ": activations must be finite, got NaN or infinity");
  return out;
}

torch::Tensor direction_of(const Pairs& pairs, Method method, uint64_t seed, std::vector<double>* shares,
                           const torch::Tensor& near_D) {
  check<std::invalid_argument>(
      pairs.sum_of_squares > 0,
      "direction_of_pairs: the pairs must differ, got equal activations: no variance");
  if (shares) shares->clear();
  if (method == Method::mean_diff) return mean_difference(pairs);
  if (method == Method::logistic) return logistic_direction(pairs);
  const auto [rows_ND, center] = rows_of(method, pairs, seed);
  const auto pca = first_component(rows_ND, center, near_D);
  if (shares) {
    const auto* first = pca.variance_share.const_data_ptr<double>();
    shares->assign(first, first + pca.variance_share.numel());
  }
  const auto projections_N = pairs.difference_ND.mv(pca.component_D);
  const auto vote = projections_N.sign().sum().item<double>();
  const bool turn = vote < 0 || (vote == 0 && projections_N.sum().item<double>() < 0);
  return turn ? -pca.component_D : pca.component_D;
}

torch::Tensor direction_of_pairs(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                                 Method method, std::vector<double>* shares, uint64_t seed) {
  const auto pairs = checked_pairs("direction_of_pairs", positive_ND, negative_ND);
  return direction_of(pairs, method, seed, shares).to(torch::kFloat32);
}

}  // namespace introspect::steering
