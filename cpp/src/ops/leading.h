#pragma once

#include <cstdint>
#include <optional>

#include <torch/types.h>

namespace introspect::ops {

/// The largest eigenvalues of a matrix X^T X or X X^T and the eigenvector of the first.
struct LeadingEigen {
  torch::Tensor vector_M;  ///< float64, of length 1
  torch::Tensor values;    ///< float64, descending
};

/// By Lanczos' method with whole reorthogonalisation on the smaller of X^T X [D, D] and X X^T [N, N], neither of which
/// is formed; nothing where the gap below the first eigenvalue is too small for it, and a full decomposition is due.
///
/// What is returned is proven: the vector is within 1e-10 (an angle) of the eigenvector, by its residual over the gap
/// (Davis & Kahan 1970), each value within 1e-7 of the first. That no eigenvalue above was missed follows where the
/// variance outside the subspace, which is the trace less the subspace's, is below the first; elsewhere a Cholesky
/// factorisation of the matrix shows it.
///
/// rows_ND: float64 [N, D], finite. trace: the sum of its squares.
std::optional<LeadingEigen> leading_eigen(const torch::Tensor& rows_ND, double trace, int64_t n_values);

/// The eigenvector of X^T X [D, D] near `start_D`, to about `angle`: for rows much like others whose leading component
/// is known. Nothing where the rows have no variance along it or it is not near.
std::optional<torch::Tensor> leading_near(const torch::Tensor& rows_ND, const torch::Tensor& start_D,
                                          double angle);

}  // namespace introspect::ops
