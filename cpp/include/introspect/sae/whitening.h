#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// An affine map that gives rows mean 0 and covariance 1: z = (x - mean) matrix, x = z inverse + mean; float64.
///
/// With the covariance E diag(v) E^T of the rows, matrix is E diag(v + eps)^-1/2 and inverse its inverse.
/// Source: arXiv:2511.13981; eps as in SAELens 6.54.
struct Whitening {
  torch::Tensor mean_D, matrix_DD, inverse_DD;
};

constexpr double kWhiteningEps = 1e-3;  ///< added to the variances

/// Mean and covariance of rows, gathered batch by batch in float64.
struct INTROSPECT_EXPORT WhiteningStatistics {
  int64_t rows = 0;
  torch::Tensor sum_D, outer_DD;  ///< of x, and of x^T x; undefined before the first rows

  /// Adds rows [N, D]. Throws ShapeError for another width than before.
  void add(const torch::Tensor& x_ND);
  /// Throws std::invalid_argument for no more rows than they are wide: their covariance would have directions of no variance,
  /// which whitening would make 30 times as long.
  Whitening whitening(double eps = kWhiteningEps) const;
};

/// A dictionary of whitened rows as one of the rows themselves: the same features, and what is decoded mapped back.
///
/// A choice by decoder norm is folded first (fold_decoder_norm), since the map changes the norms. Throws ConfigError for
/// matching pursuit, whose rows must stay of length 1, for one with an input norm and for transcoders, and ShapeError for
/// a map of another width.
INTROSPECT_EXPORT Dictionary fold_whitening(const Dictionary& dictionary, const Whitening& whitening);

}  // namespace introspect::sae
