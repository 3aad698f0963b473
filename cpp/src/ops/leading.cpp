#include "ops/leading.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include <torch/types.h>
#include <Eigen/Eigenvalues>

namespace introspect::ops {
namespace {

constexpr double kAngle = 1e-10;        // of the first vector
constexpr double kValueError = 1e-7;    // of each value, as a share of the first
constexpr int64_t kMostStepsNear = 64;  // without having come near, a start is as good as any
constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

/// The same for every matrix of a size: numbers of a generator whose sequence the standard fixes.
torch::Tensor start_vector(int64_t size) {
  std::mt19937_64 generator(1);
  auto out = torch::empty({size}, torch::kFloat64);
  auto* values = out.data_ptr<double>();
  for (int64_t i = 0; i < size; ++i) values[i] = static_cast<double>(generator() >> 11) * 0x1p-53 - 0.5;
  return out / out.norm();
}

/// When to look after `steps` next: a look costs the cube of the steps.
int64_t next_look(int64_t steps) {
  return steps + std::max<int64_t>(4, steps / 4);
}

/// What Lanczos' method knows after some steps: Ritz values, descending, the coordinates of their vectors in the basis,
/// and by how much each misses being an eigenvector.
struct Ritz {
  Eigen::VectorXd values, residuals;
  Eigen::MatrixXd coordinates;
};

/// An orthonormal basis of the Krylov space of X^T X, or X X^T, that grows step by step.
class Lanczos {
 public:
  Lanczos(torch::Tensor outer, const torch::Tensor& start_M, int64_t most_steps)
      : outer_(std::move(outer)),
        inner_(outer_.t()),
        basis_KM_(torch::empty({most_steps + 1, start_M.size(0)}, torch::kFloat64)) {
    basis_KM_[0].copy_(start_M);
  }

  /// False once the basis is invariant: there is nothing to add.
  bool step() {
    const auto at = steps();
    const auto v = basis_KM_[at];
    const auto known = basis_KM_.narrow(0, 0, at + 1);
    auto next = outer_.mv(inner_.mv(v));
    diagonal_.push_back(next.dot(v).item<double>());
    for (int pass = 0; pass < 2; ++pass) next = next - known.t().mv(known.mv(next));
    below_.push_back(next.norm().item<double>());
    const auto largest = *std::max_element(diagonal_.begin(), diagonal_.end());
    if (below_.back() <= static_cast<double>(v.size(0)) * kEpsilon * largest) return false;
    basis_KM_[at + 1].copy_(next / below_.back());
    return true;
  }

  int64_t steps() const { return static_cast<int64_t>(diagonal_.size()); }
  double below() const { return below_.back(); }

  double trace() const {
    double sum = 0;
    for (const double x : diagonal_) sum += x;
    return sum;
  }

  std::optional<Ritz> ritz(int64_t n_values) const {
    const auto found = std::min(n_values, steps());
    const Eigen::Map<const Eigen::VectorXd> diagonal(diagonal_.data(), steps()),
        below(below_.data(), steps() - 1);
    Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver;
    solver.computeFromTridiagonal(diagonal, below);
    if (solver.info() != Eigen::Success) return std::nullopt;
    Ritz out;
    out.values = solver.eigenvalues().tail(found).reverse();
    out.coordinates = solver.eigenvectors().rightCols(found).rowwise().reverse();
    out.residuals = below_.back() * out.coordinates.row(steps() - 1).transpose().cwiseAbs();
    return out;
  }

  /// Coordinates [steps, k] as vectors [k, M].
  torch::Tensor vectors(const Eigen::MatrixXd& coordinates) const {
    auto rows = torch::empty({coordinates.cols(), coordinates.rows()}, torch::kFloat64);
    std::copy(coordinates.data(), coordinates.data() + coordinates.size(), rows.data_ptr<double>());
    return rows.mm(basis_KM_.narrow(0, 0, steps()));
  }

 private:
  torch::Tensor outer_, inner_;
  torch::Tensor basis_KM_;
  std::vector<double> diagonal_, below_;
};

/// Whether no eigenvalue of the matrix but those of the rows of `vectors` is above `bound`: bound - (A - V diag(values)
/// V^T) has a Cholesky factorisation exactly if it is positive definite.
bool none_above(double bound, const torch::Tensor& outer, const torch::Tensor& vectors_KM,
                const torch::Tensor& values) {
  auto rest_MM = vectors_KM.t().mm(values.unsqueeze(1) * vectors_KM);
  rest_MM.addmm_(outer, outer.t(), 1.0, -1.0);
  rest_MM.diagonal().add_(bound);
  const auto [factor, failed] = torch::linalg_cholesky_ex(rest_MM);
  return failed.item<int>() == 0;
}

/// Above every eigenvalue but the first: of the matrix that the other Ritz vectors and what lies outside the subspace
/// make, the two being coupled by no more than `below`.
double bound_of_others(double second, double outside, double below) {
  return (second + outside) / 2 + std::hypot((second - outside) / 2, below);
}

}  // namespace

std::optional<LeadingEigen> leading_eigen(const torch::Tensor& rows_ND, double trace, int64_t n_values) {
  const auto outer = rows_ND.size(0) < rows_ND.size(1) ? rows_ND : rows_ND.t();
  const int64_t size = outer.size(0);
  const auto most_steps = size / 3;  // from here on a full decomposition costs about the same
  if (n_values < 1 || most_steps <= n_values) return std::nullopt;
  Lanczos lanczos(outer, start_vector(size), most_steps);
  for (int64_t look = n_values; lanczos.steps() < most_steps;) {
    const bool spent = !lanczos.step();
    if (!spent && lanczos.steps() < look) continue;
    look = next_look(lanczos.steps());
    const auto ritz = lanczos.ritz(n_values);
    if (!ritz) return std::nullopt;
    const auto found = ritz->values.size();
    const auto first = ritz->values[0];
    const auto second = found > 1 ? ritz->values[1] + ritz->residuals[1] : 0.0;
    // Rounding of the products is a residual too, so a small gap cannot be settled by more steps.
    const auto residual = ritz->residuals[0] + kEpsilon * first * std::sqrt(static_cast<double>(size));
    const bool settled = found == n_values && residual <= kAngle * (first - second) &&
                         ritz->residuals.maxCoeff() <= kValueError * first;
    if (!settled && spent) return std::nullopt;
    if (!settled) continue;

    const auto vectors_KM = lanczos.vectors(ritz->coordinates);
    auto values = torch::empty({found}, torch::kFloat64);
    std::copy(ritz->values.begin(), ritz->values.end(), values.data_ptr<double>());
    const auto others = bound_of_others(second, std::max(trace - lanczos.trace(), 0.0), lanczos.below());
    if (residual > kAngle * (first - others) &&
        !none_above(ritz->values[found - 1] + kValueError * first, outer, vectors_KM, values))
      return std::nullopt;
    return LeadingEigen{vectors_KM[0] / vectors_KM[0].norm(), values};
  }
  return std::nullopt;
}

std::optional<torch::Tensor> leading_near(const torch::Tensor& rows_ND, const torch::Tensor& start_D,
                                          double angle) {
  const auto most_steps = std::min({rows_ND.size(0), rows_ND.size(1), kMostStepsNear});
  Lanczos lanczos(rows_ND.t(), start_D / start_D.norm(), most_steps);
  for (int64_t look = next_look(0); lanczos.steps() < most_steps;) {
    const bool spent = !lanczos.step();
    if (!spent && lanczos.steps() < look) continue;
    look = next_look(lanczos.steps());
    const auto ritz = lanczos.ritz(2);
    if (!ritz || ritz->values[0] <= 0) return std::nullopt;
    const auto second = ritz->values.size() > 1 ? ritz->values[1] + ritz->residuals[1] : 0.0;
    if (!spent && ritz->residuals[0] > angle * (ritz->values[0] - second)) continue;
    const auto vector_D = lanczos.vectors(ritz->coordinates.leftCols(1))[0];
    return vector_D / vector_D.norm();
  }
  return std::nullopt;
}

}  // namespace introspect::ops
