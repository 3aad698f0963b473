#pragma once

#include <cstdint>
#include <optional>

#include <Eigen/Core>

namespace introspect::ops {

/// The largest eigenvalues of a symmetric positive semidefinite matrix and the eigenvector of the first.
struct LeadingEigen {
  Eigen::VectorXd vector;  ///< of length 1
  Eigen::VectorXd values;  ///< descending
};

/// By Lanczos' method with whole reorthogonalisation from a fixed start; nothing where the gap below the first
/// eigenvalue is too small for it, and a full decomposition is due.
///
/// What is returned is proven: the vector is within 1e-10 (an angle) of the eigenvector, by its residual over the gap
/// (Parlett 1998, "The Symmetric Eigenvalue Problem", 11.7), each value within 1e-7 of the first, and a Cholesky
/// factorisation shows that no eigenvalue above the last of them was missed.
std::optional<LeadingEigen> leading_eigen(const Eigen::MatrixXd& symmetric, int64_t n_values);

}  // namespace introspect::ops
