#include "introspect/steering/directions.h"

#include <map>
#include <stdexcept>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include "introspect/core/check.h"
#include "introspect/ops/pca.h"
#include "steering/logistic.h"

namespace introspect::steering {
namespace {

const std::map<std::string, Method> kMethods{{"pca_center", Method::pca_center},
                                             {"pca_global_center", Method::pca_global_center},
                                             {"pca_diff", Method::pca_diff},
                                             {"pca_diff_uncentered", Method::pca_diff_uncentered},
                                             {"lat", Method::lat},
                                             {"mean_diff", Method::mean_diff},
                                             {"logistic", Method::logistic}};

constexpr int64_t kSharesKept = 8;  // of each layer's spectrum

torch::Tensor random_differences(const torch::Tensor& activations_ND, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto order = torch::randperm(activations_ND.size(0), generator, torch::kInt64);
  const auto shuffled_ND = activations_ND.index_select(0, order);
  return shuffled_ND.slice(0, 0, std::nullopt, 2) - shuffled_ND.slice(0, 1, std::nullopt, 2);
}

/// What the first component is taken of, and whether its rows' mean comes off first.
std::pair<torch::Tensor, bool> rows_of(Method method, const torch::Tensor& positive_ND,
                                       const torch::Tensor& negative_ND, uint64_t seed) {
  switch (method) {
    case Method::pca_global_center:
      return {torch::cat({positive_ND, negative_ND}), true};
    case Method::lat:
      return {random_differences(torch::cat({positive_ND, negative_ND}), seed), true};
    case Method::pca_diff:
      return {positive_ND - negative_ND, true};
    default:
      // Each pair less its midpoint is +-half its difference: PCA of all of them is that of the halves about zero.
      return {(positive_ND - negative_ND) / 2, false};
  }
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

torch::Tensor direction_of_pairs(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                                 Method method, std::vector<double>* shares, uint64_t seed) {
  check<ShapeError>(
      positive_ND.dim() == 2 && positive_ND.sizes() == negative_ND.sizes() && positive_ND.size(0) > 0 &&
          positive_ND.is_floating_point() && negative_ND.is_floating_point(),
      "direction_of_pairs: both sides must be float [pairs, d_model] of one shape, got ", positive_ND.sizes(),
      " ", positive_ND.dtype(), " and ", negative_ND.sizes(), " ", negative_ND.dtype());
  const auto pos_ND = positive_ND.to(torch::kCPU, torch::kFloat64);
  const auto neg_ND = negative_ND.to(torch::kCPU, torch::kFloat64);
  const auto difference_ND = pos_ND - neg_ND;
  check<std::invalid_argument>(difference_ND.isfinite().all().item<bool>(),
                               "direction_of_pairs: activations must be finite, got NaN or infinity");
  check<std::invalid_argument>(
      difference_ND.count_nonzero().item<int64_t>() > 0,
      "direction_of_pairs: the pairs must differ, got equal activations: no variance");
  if (shares) shares->clear();
  if (method == Method::mean_diff) {
    const auto mean_D = difference_ND.mean(0);
    check<std::invalid_argument>(mean_D.norm().item<double>() > 0,
                                 "direction_of_pairs: the mean difference must not be zero");
    return mean_D.to(torch::kFloat32);
  }
  if (method == Method::logistic) {
    const auto n = pos_ND.size(0);
    const auto labels = torch::cat({torch::ones({n}, torch::kFloat64), torch::zeros({n}, torch::kFloat64)});
    const auto weights_D = logistic_weights(torch::cat({pos_ND, neg_ND}), labels);
    const auto norm = weights_D.norm().item<double>();
    check<std::invalid_argument>(norm > 0,
                                 "direction_of_pairs: the sides must differ in their means for a regression");
    return (weights_D / norm).to(torch::kFloat32);
  }
  const auto [rows_ND, center] = rows_of(method, pos_ND, neg_ND, seed);
  const auto pca = ops::leading_component(rows_ND, center, kSharesKept);
  auto direction_D = pca.component_D;
  const auto projections_N = difference_ND.mv(direction_D);
  const auto vote = projections_N.sign().sum().item<double>();
  if (vote < 0 || (vote == 0 && projections_N.sum().item<double>() < 0)) direction_D = -direction_D;
  if (shares) {
    const auto* first = pca.variance_share.const_data_ptr<double>();
    shares->assign(first, first + pca.variance_share.numel());
  }
  return direction_D.to(torch::kFloat32);
}

}  // namespace introspect::steering
