#include "introspect/ops/pca.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include <Eigen/Eigenvalues>

#include "introspect/core/check.h"
#include "ops/leading.h"

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

/// The rows in double precision, centred if asked, and the smaller of their two Gram matrices.
struct Gram {
  torch::Tensor x_ND;
  torch::Tensor matrix_MM;
  bool few_rows;  // [N, N] rather than [D, D]
};

Gram gram(const std::string& who, const torch::Tensor& rows_ND, bool center) {
  check<ShapeError>(rows_ND.dim() == 2 && rows_ND.size(0) >= 1 && rows_ND.is_floating_point(), who,
                    ": rows must be a float matrix [n, d] with n >= 1, got ", rows_ND.sizes(), " ",
                    rows_ND.dtype());
  auto x_ND = rows_ND.to(torch::kCPU, torch::kFloat64);
  check<std::invalid_argument>(x_ND.isfinite().all().item<bool>(), who,
                               ": rows must be finite, got NaN or infinity");
  if (center) {
    const auto mean_D = x_ND.mean(0, /*keepdim=*/true);
    // Equal rows less their mean are the mean's rounding, which is no variance.
    const auto rounding =
        static_cast<double>(x_ND.size(0)) * std::numeric_limits<double>::epsilon() * x_ND.abs().max();
    x_ND = x_ND - mean_D;
    x_ND = torch::where(x_ND.abs().max() > rounding, x_ND, 0.0);
  }
  const bool few_rows = x_ND.size(0) < x_ND.size(1);
  const auto x_t = x_ND.t();
  return {x_ND, (few_rows ? x_ND.mm(x_t) : x_t.mm(x_ND)).contiguous(), few_rows};
}

/// Eigenvectors of a Gram matrix as directions of the rows, of length 1.
torch::Tensor as_components(const Gram& of, const torch::Tensor& vectors_KM) {
  if (!of.few_rows) return vectors_KM.contiguous();
  const auto components_KD = vectors_KM.mm(of.x_ND);
  return components_KD / components_KD.norm(2, {1}, /*keepdim=*/true);
}

}  // namespace

PrincipalComponents principal_components(const torch::Tensor& rows_ND, int64_t k, bool center) {
  const auto of = gram("principal_components", rows_ND, center);
  const auto spectrum = decompose(of.matrix_MM);

  // A direction below the rounding of the largest one is noise of the Gram product, not a direction of the rows.
  const double floor = spectrum.values[0].item<double>() * static_cast<double>(spectrum.values.size(0)) *
                       std::numeric_limits<double>::epsilon();
  const auto rank =
      (spectrum.values > std::max(floor, std::numeric_limits<double>::min())).sum().item<int64_t>();
  check<std::invalid_argument>(k >= 1 && k <= rank, "principal_components: k must be 1 to ", rank,
                               ", the number of directions with variance, got ", k);
  const auto variance = spectrum.values.clamp_min(0.0);
  return {as_components(of, spectrum.vectors_MM.narrow(0, 0, k)), variance / variance.sum()};
}

LeadingComponent leading_component(const torch::Tensor& rows_ND, bool center, int64_t n_shares) {
  check<std::invalid_argument>(n_shares >= 1, "leading_component: n_shares must be at least 1, got ",
                               n_shares);
  const auto of = gram("leading_component", rows_ND, center);
  const auto total = of.matrix_MM.trace().item<double>();
  check<std::invalid_argument>(total > std::numeric_limits<double>::min(),
                               "leading_component: the rows must have a direction with variance, got none");
  const auto size = of.matrix_MM.size(0);
  const Eigen::Map<const Eigen::MatrixXd> matrix(of.matrix_MM.const_data_ptr<double>(), size, size);
  if (const auto found = leading_eigen(matrix, n_shares)) {
    const auto copy = [](const Eigen::VectorXd& x) {
      auto out = torch::empty({x.size()}, torch::kFloat64);
      std::copy(x.begin(), x.end(), out.data_ptr<double>());
      return out;
    };
    return {as_components(of, copy(found->vector).unsqueeze(0))[0], copy(found->values) / total};
  }
  const auto spectrum = decompose(of.matrix_MM);
  const auto shares = spectrum.values.narrow(0, 0, std::min(n_shares, size)).clamp_min(0.0) / total;
  return {as_components(of, spectrum.vectors_MM.narrow(0, 0, 1))[0], shares};
}

}  // namespace introspect::ops
