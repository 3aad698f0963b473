#include "ops/leading.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include <Eigen/Cholesky>
#include <Eigen/Eigenvalues>

namespace introspect::ops {
namespace {

constexpr double kAngle = 1e-10;      // of the first vector
constexpr double kValueError = 1e-7;  // of each value, as a share of the first
constexpr int64_t kStepsBetweenLooks = 8;
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// The same for every matrix of a size: numbers of a generator whose sequence the standard fixes.
Eigen::VectorXd start_vector(int64_t size) {
  std::mt19937_64 generator(1);
  Eigen::VectorXd out(size);
  for (auto& x : out) x = static_cast<double>(generator() >> 11) * 0x1p-53 - 0.5;
  return out.normalized();
}

/// Whether no eigenvalue but those of the columns of `vectors` is above `bound`: bound - (A - V diag(values) V^T) has a
/// Cholesky factorisation exactly if it is positive definite.
bool none_above(double bound, const Eigen::MatrixXd& symmetric, const Eigen::MatrixXd& vectors,
                const Eigen::VectorXd& values) {
  Eigen::MatrixXd rest = vectors * values.asDiagonal() * vectors.transpose() - symmetric;
  rest.diagonal().array() += bound;
  return Eigen::LLT<Eigen::Ref<Eigen::MatrixXd>>(rest).info() == Eigen::Success;
}

}  // namespace

std::optional<LeadingEigen> leading_eigen(const Eigen::MatrixXd& symmetric, int64_t n_values) {
  const int64_t size = symmetric.rows();
  const auto most_steps = size / 3;  // from here on a full decomposition costs about the same
  if (n_values < 1 || most_steps <= n_values) return std::nullopt;

  Eigen::MatrixXd basis(size, most_steps + 1);
  Eigen::VectorXd diagonal(most_steps), below(most_steps);
  basis.col(0) = start_vector(size);
  for (int64_t step = 0; step < most_steps; ++step) {
    const auto known = basis.leftCols(step + 1);
    Eigen::VectorXd next = symmetric * basis.col(step);
    diagonal[step] = basis.col(step).dot(next);
    for (int pass = 0; pass < 2; ++pass) next -= known * (known.transpose() * next).eval();
    below[step] = next.norm();
    const auto largest = diagonal.head(step + 1).cwiseAbs().maxCoeff();
    const bool spent =
        below[step] <= static_cast<double>(size) * kEpsilon * largest;  // the basis is invariant
    if (!spent) basis.col(step + 1) = next / below[step];
    if (!spent && (step < n_values || (step + 1) % kStepsBetweenLooks != 0)) continue;

    const int64_t steps = step + 1;
    Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> ritz;
    ritz.computeFromTridiagonal(diagonal.head(steps), below.head(steps - 1));
    if (ritz.info() != Eigen::Success) return std::nullopt;
    const auto found = std::min(n_values, steps);
    const Eigen::VectorXd values = ritz.eigenvalues().tail(found).reverse();
    const Eigen::MatrixXd coordinates = ritz.eigenvectors().rightCols(found).rowwise().reverse();
    const Eigen::VectorXd residuals = below[step] * coordinates.row(steps - 1).transpose().cwiseAbs();
    const auto second = found > 1 ? values[1] + residuals[1] : 0.0;
    const auto gap = values[0] - second;
    // Rounding of the products is a residual too, so a small gap cannot be settled by more steps.
    const auto rounding = kEpsilon * values[0] * std::sqrt(static_cast<double>(size));
    const bool settled = found == n_values && residuals[0] + rounding <= kAngle * gap &&
                         residuals.maxCoeff() <= kValueError * values[0];
    if (!settled && spent) return std::nullopt;
    if (!settled) continue;

    const Eigen::MatrixXd vectors = basis.leftCols(steps) * coordinates;
    const auto bound = values[found - 1] + kValueError * values[0];
    if (!none_above(bound, symmetric, vectors, values)) return std::nullopt;
    return LeadingEigen{vectors.col(0).normalized(), values};
  }
  return std::nullopt;
}

}  // namespace introspect::ops
