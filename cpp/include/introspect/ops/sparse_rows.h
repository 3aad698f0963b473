#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {

/// Some entries of a matrix [N, F], row by row (CSR); the others are 0.
struct SparseRows {
  torch::Tensor offsets;  ///< int64 [N + 1]: row n has entries offsets[n] to offsets[n + 1]
  torch::Tensor indices;  ///< int64 [E], columns, ascending within a row
  torch::Tensor values;   ///< [E]

  int64_t rows() const { return offsets.size(0) - 1; }
};

/// p = (x W^T + b) scale of rows x [N, D]: what an activation chooses from. One floating dtype on the CPU.
struct LinearRows {
  torch::Tensor W_FD;
  torch::Tensor b_F = {};      ///< undefined: 0
  torch::Tensor scale_F = {};  ///< undefined: 1
};

// The next four multiply a tile of rows at a time and choose from it while it is in the cache, so that no [N, F] is
// kept. p is summed in float32 (float64 of float64 weights), and values are in that dtype. Equal ones: the first column,
// for any number of threads. NaN ranks above every number. Nothing has a gradient. x [N, D] in any floating dtype. They
// throw ShapeError, and std::invalid_argument for a number out of range.

/// Where p > threshold_F; undefined: above 0.
INTROSPECT_EXPORT SparseRows rows_above(const torch::Tensor& x_ND, const LinearRows& linear,
                                        const torch::Tensor& threshold_F = {});

enum class Rank : uint8_t {
  positive,   ///< p, of those above 0 alone
  value,      ///< p
  magnitude,  ///< |p|
};

/// The k of each row that rank highest, those that are 0 left out.
INTROSPECT_EXPORT SparseRows topk_rows(const torch::Tensor& x_ND, const LinearRows& linear, int64_t k,
                                       Rank rank = Rank::positive);

/// The `total` largest p above 0 of all rows together; of equal ones the first row, then the first column.
INTROSPECT_EXPORT SparseRows topk_of_all_rows(const torch::Tensor& x_ND, const LinearRows& linear,
                                              int64_t total);

/// The largest p above 0 in each of `groups` groups of F / groups columns side by side.
INTROSPECT_EXPORT SparseRows group_max_rows(const torch::Tensor& x_ND, const LinearRows& linear,
                                            int64_t groups);

// What follows reads rows of a matrix that entries name: sums in float32 (float64 of float64), in an order that does not
// depend on threads. bfloat16 and float16 rows are widened as they are read. No gradients.

/// f W [N, D] of f [N, F] and W [F, D], in float32 or float64. Throws ShapeError, and std::out_of_range for an index that W has no row for.
INTROSPECT_EXPORT torch::Tensor gather_decode(const SparseRows& f, const torch::Tensor& W_FD);

/// g[n] . W[f] for each entry (n, f) of `at` [E], in g's dtype: the gradient of f in f W, where g [N, D] is that of f W.
INTROSPECT_EXPORT torch::Tensor dot_rows(const torch::Tensor& g_ND, const torch::Tensor& W_FD,
                                         const SparseRows& at);

/// The entries of SparseRows column by column.
struct SparseColumns {
  torch::Tensor offsets;  ///< int64 [F + 1]
  torch::Tensor rows;     ///< int64 [E], ascending within a column
  torch::Tensor entries;  ///< int64 [E]: their places among those of SparseRows
};
INTROSPECT_EXPORT SparseColumns by_column(const SparseRows& f, int64_t F);

/// out[f] += sum over entries (n, f) of coefficients[entry] rows[n], for the f that have entries: the gradient of W in
/// f W, and with df that of an encoder's rows.
///
/// Shapes: coefficients [E] in the order of the SparseRows that `at` is of, rows [N, D], out [F, D] contiguous; one dtype,
/// float32 or float64.
INTROSPECT_EXPORT void add_rows(const SparseColumns& at, const torch::Tensor& coefficients_E,
                                const torch::Tensor& rows_ND, torch::Tensor& out_FD);

}  // namespace introspect::ops
