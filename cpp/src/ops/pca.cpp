#include "introspect/ops/pca.h"

#include <algorithm>
#include <cmath>
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

/// The rows in double precision, centred if asked, and the sum of their squares.
struct Rows {
  torch::Tensor x_ND;
  double trace;  // of either Gram matrix
};

double sum_of_squares(const torch::Tensor& x_ND) {
  const auto flat = x_ND.flatten();
  return flat.dot(flat).item<double>();
}

Rows checked_rows(const std::string& who, const torch::Tensor& rows_ND, bool center) {
  check<ShapeError>(rows_ND.dim() == 2 && rows_ND.size(0) >= 1 && rows_ND.is_floating_point(), who,
                    ": rows must be a float matrix [n, d] with n >= 1, got ", rows_ND.sizes(), " ",
                    rows_ND.dtype());
  auto x_ND = rows_ND.to(torch::kCPU, torch::kFloat64);
  // Squares of float32 numbers do not overflow in double precision, and those of larger ones are refused with them.
  auto trace = sum_of_squares(x_ND);
  check<std::invalid_argument>(std::isfinite(trace), who, ": rows must be finite, got NaN or infinity");
  if (center) {
    const auto mean_D = x_ND.mean(0, /*keepdim=*/true);
    // Equal rows less their mean are the mean's rounding, which is no variance.
    const auto rounding = static_cast<double>(x_ND.size(0)) * std::numeric_limits<double>::epsilon() *
                          x_ND.abs().max().item<double>();
    x_ND = x_ND - mean_D;
    if (x_ND.abs().max().item<double>() <= rounding) x_ND.zero_();
    trace = sum_of_squares(x_ND);
  }
  return {x_ND, trace};
}

/// The smaller of the two Gram matrices: that of the rows where there are fewer of them than columns.
bool of_rows(const torch::Tensor& x_ND) {
  return x_ND.size(0) < x_ND.size(1);
}

torch::Tensor gram(const torch::Tensor& x_ND) {
  const auto x_t = x_ND.t();
  return (of_rows(x_ND) ? x_ND.mm(x_t) : x_t.mm(x_ND)).contiguous();
}

/// Eigenvectors of that matrix as directions of the rows, of length 1.
torch::Tensor as_components(const torch::Tensor& x_ND, const torch::Tensor& vectors_KM) {
  if (!of_rows(x_ND)) return vectors_KM.contiguous();
  const auto components_KD = vectors_KM.mm(x_ND);
  return components_KD / components_KD.norm(2, {1}, /*keepdim=*/true);
}

}  // namespace

PrincipalComponents principal_components(const torch::Tensor& rows_ND, int64_t k, bool center) {
  const auto x_ND = checked_rows("principal_components", rows_ND, center).x_ND;
  const auto spectrum = decompose(gram(x_ND));

  // A direction below the rounding of the largest one is noise of the Gram product, not a direction of the rows.
  const double floor = spectrum.values[0].item<double>() * static_cast<double>(spectrum.values.size(0)) *
                       std::numeric_limits<double>::epsilon();
  const auto rank =
      (spectrum.values > std::max(floor, std::numeric_limits<double>::min())).sum().item<int64_t>();
  check<std::invalid_argument>(k >= 1 && k <= rank, "principal_components: k must be 1 to ", rank,
                               ", the number of directions with variance, got ", k);
  const auto variance = spectrum.values.clamp_min(0.0);
  return {as_components(x_ND, spectrum.vectors_MM.narrow(0, 0, k)), variance / variance.sum()};
}

LeadingComponent leading_component(const torch::Tensor& rows_ND, bool center, int64_t n_shares) {
  check<std::invalid_argument>(n_shares >= 1, "leading_component: n_shares must be at least 1, got ",
                               n_shares);
  const auto [x_ND, trace] = checked_rows("leading_component", rows_ND, center);
  check<std::invalid_argument>(trace > std::numeric_limits<double>::min(),
                               "leading_component: the rows must have a direction with variance, got none");
  if (const auto found = leading_eigen(x_ND, trace, n_shares))
    return {as_components(x_ND, found->vector_M.unsqueeze(0))[0], found->values / trace};
  const auto spectrum = decompose(gram(x_ND));
  const auto n_values = std::min(n_shares, spectrum.values.size(0));
  const auto shares = spectrum.values.narrow(0, 0, n_values).clamp_min(0.0) / trace;
  return {as_components(x_ND, spectrum.vectors_MM.narrow(0, 0, 1))[0], shares};
}

}  // namespace introspect::ops
