#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Directions of largest variance and the spectrum they were taken from.
struct PrincipalComponents {
  torch::Tensor
      components_KD;  ///< float64, orthonormal rows, largest variance first; the sign of a row is arbitrary
  torch::Tensor
      variance_share;  ///< float64 [min(N, D)], descending: share of the total variance along each component
};

/// The first `k` principal components of the rows, in double precision.
///
/// With `center` the rows' mean is taken off first (PCA as usual); without it the components are those of the
/// second moment about zero. Rows that come in exact pairs +h, -h have mean zero, so their centred PCA equals the
/// uncentred one of the halves h, with half the rows. The smaller of the two Gram matrices (N x N or D x D)
/// is decomposed whole, so the result is a function of the input alone: no start vector, no random projection.
///
/// Shapes: rows_ND [N, D], any float dtype -> components_KD [k, D].
/// Throws ShapeError unless rows_ND is a matrix with N >= 1; std::invalid_argument for values that are not finite
/// and where the rows have fewer than `k` directions of non-zero variance.
/// Source: Jolliffe 2002, "Principal Component Analysis"; equal to sklearn.decomposition.PCA up to sign.
INTROSPECT_EXPORT PrincipalComponents principal_components(const torch::Tensor& rows_ND, int64_t k,
                                                           bool center);

/// The direction of largest variance and how much of it there is along the next ones.
struct LeadingComponent {
  torch::Tensor component_D;     ///< float64, of length 1; its sign is arbitrary
  torch::Tensor variance_share;  ///< float64 [at most n_shares], descending: shares of the total variance
};

/// principal_components with k = 1 and only the first `n_shares` shares, several times faster for matrices of hundreds.
///
/// Lanczos' method from a fixed start, with a proof of what it found: the component is within 1e-10 (an angle) of the
/// exact one, and each share within 1e-7 of the first. Where the gap below the first share is too small for that, the
/// smaller Gram matrix is decomposed whole. The shares are of the whole variance.
///
/// Shapes: rows_ND [N, D], any float dtype. Throws as principal_components does, and std::invalid_argument unless
/// n_shares >= 1. Source: Parlett 1998, "The Symmetric Eigenvalue Problem", chapters 11 and 13.
INTROSPECT_EXPORT LeadingComponent leading_component(const torch::Tensor& rows_ND, bool center,
                                                     int64_t n_shares = 8);

}  // namespace introspect::ops
