#include "introspect/ops/pca.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include <Eigen/Eigenvalues>

#include "introspect/core/check.h"

namespace introspect::ops {
namespace {

using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

struct Spectrum {
  torch::Tensor values;      // float64 [M], descending
  torch::Tensor vectors_MM;  // float64, row m belongs to values[m]
};

Spectrum decompose(const torch::Tensor& symmetric_MM) {
  const auto size = symmetric_MM.size(0);
  const Eigen::Map<const RowMajor> matrix(symmetric_MM.const_data_ptr<double>(), size, size);
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(matrix);
  check<std::invalid_argument>(solver.info() == Eigen::Success,
                               "principal_components: the eigenvalues of the Gram matrix did not converge");
  Spectrum out{torch::empty({size}, torch::kFloat64), torch::empty({size, size}, torch::kFloat64)};
  // Eigen orders ascending and keeps eigenvectors in columns.
  Eigen::Map<Eigen::VectorXd>(out.values.data_ptr<double>(), size) = solver.eigenvalues().reverse();
  Eigen::Map<RowMajor>(out.vectors_MM.data_ptr<double>(), size, size) =
      solver.eigenvectors().rowwise().reverse().transpose();
  return out;
}

}  // namespace

PrincipalComponents principal_components(const torch::Tensor& rows_ND, int64_t k, bool center) {
  check<ShapeError>(rows_ND.dim() == 2 && rows_ND.size(0) >= 1 && rows_ND.is_floating_point(),
                    "principal_components: rows must be a float matrix [n, d] with n >= 1, got ",
                    rows_ND.sizes(), " ", rows_ND.dtype());
  auto x_ND = rows_ND.to(torch::kCPU, torch::kFloat64);
  check<std::invalid_argument>(x_ND.isfinite().all().item<bool>(),
                               "principal_components: rows must be finite, got NaN or infinity");
  if (center) x_ND = x_ND - x_ND.mean(0, /*keepdim=*/true);
  const bool few_rows = x_ND.size(0) < x_ND.size(1);
  const auto x_t = x_ND.t();
  const auto spectrum = decompose((few_rows ? x_ND.mm(x_t) : x_t.mm(x_ND)).contiguous());

  // A direction below the rounding of the largest one is noise of the Gram product, not a direction of the rows.
  const double floor = spectrum.values[0].item<double>() * static_cast<double>(spectrum.values.size(0)) *
                       std::numeric_limits<double>::epsilon();
  const auto rank =
      (spectrum.values > std::max(floor, std::numeric_limits<double>::min())).sum().item<int64_t>();
  check<std::invalid_argument>(k >= 1 && k <= rank, "principal_components: k must be 1 to ", rank,
                               ", the number of directions with variance, got ", k);
  auto components_KD = spectrum.vectors_MM.narrow(0, 0, k);
  if (few_rows) {
    components_KD = components_KD.mm(x_ND);
    components_KD = components_KD / components_KD.norm(2, {1}, /*keepdim=*/true);
  }
  const auto variance = spectrum.values.clamp_min(0.0);
  return {components_KD.contiguous(), variance / variance.sum()};
}

}  // namespace introspect::ops
