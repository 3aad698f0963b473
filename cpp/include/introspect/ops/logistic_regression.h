#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

struct LogisticOptions {
  int64_t n_classes = 2;
  /// Of the gradient where the search ends, in the preconditioned norm, as a share of its size at zero.
  double tolerance = 1e-9;
  int64_t most_steps = 1000;
};

/// Regressions of P sets of labels: logits of rows x are x w + b.
struct LogisticFits {
  torch::Tensor weights_PKD;  ///< float64; K = 1 for two classes (logits of class 1), else one row a class
  torch::Tensor bias_PK;      ///< float64
};

/// L2-regularised logistic regressions of several sets of labels on the same rows, all at once.
///
/// Each minimises C sum log-loss + |w s|^2 / 2, the intercept not penalised: scikit-learn's LogisticRegression(C) after
/// a scaler that divides by s. More than two classes: softmax, every class with weights of its own.
///
/// Preconditioned conjugate gradients with a line search by Newton's method. The rows' product with all directions is one
/// matrix product a step; the preconditioner, C^-1 I + X^T S X of the standardised rows with the mean curvature S = p (1 - p)
/// of the problems of one C, is shared by them, inverted through the smaller of two matrices, and made anew a few times on
/// the way. Works in the dtype of the rows, the preconditioner in float32. `start`: fits to begin with.
///
/// Shapes: rows_ND float32 or float64 [N, D]; labels_PN int64 [P, N], a class from 0, or -1 for rows that a problem
/// leaves out; C_P float64 [P], above 0; scale_PD float64 [P, D], above 0; undefined: one.
/// Throws ShapeError for other shapes, std::invalid_argument for rows that are not finite, labels or C out of range, or a
/// problem that does not converge (data that C too large hardly regularises).
/// Source: Nocedal & Wright 2006, chapter 5 (Polak-Ribiere).
INTROSPECT_EXPORT LogisticFits logistic_regressions(const torch::Tensor& rows_ND,
                                                    const torch::Tensor& labels_PN, const torch::Tensor& C_P,
                                                    const torch::Tensor& scale_PD = {},
                                                    const LogisticOptions& options = {},
                                                    const LogisticFits& start = {});

}  // namespace introspect::ops
