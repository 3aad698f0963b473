#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/ops/sparse_rows.h"

namespace introspect::sae::training {

/// Places of a matrix [N, F] of pre-activations p and one value at each: all places, or those few that matter.
///
/// Equations are written once for both: values `v` are [N, F] where all places are held and [E] otherwise. Few places cost
/// 2 E D operations where all cost 2 N F D, but at a tenth of the speed: below one place in kSparse they are the quicker
/// ones. Results do not depend on the number of threads.
class Entries {
 public:
  static constexpr int64_t kSparse = 12;

  static Entries all(torch::Tensor p_NF);

  /// Places with p[n, i] > lower[i]; all if they are many, so that formulas must be 0 at the others by themselves.
  static Entries above(const torch::Tensor& p_NF, const torch::Tensor& lower_F);

  struct Choice {
    int64_t k = 1;
    bool of_batch = false;  ///< k of all rows together
    bool absolute = false;  ///< the largest |p|, else the largest p above 0
    torch::Tensor scale_F;  ///< p times this is ranked; undefined: p
  };
  /// The k largest of p = c W^T + b. `masked` leaves a gradient at their places only.
  static Entries largest(const torch::Tensor& c_ND, const torch::Tensor& W_FD, const torch::Tensor& b_F,
                         const Choice& choice);

  /// 0 where a place was not chosen.
  const torch::Tensor& p() const { return p_; }
  torch::Tensor masked(const torch::Tensor& v) const;

  torch::Tensor by_feature(const torch::Tensor& t_F) const;  ///< t at each place's feature, to be broadcast
  torch::Tensor by_row(const torch::Tensor& t_N) const;
  torch::Tensor sum_of_features(const torch::Tensor& v) const;  ///< over rows: [F]
  torch::Tensor sum_of_rows(const torch::Tensor& v) const;      ///< over features: [N]

  torch::Tensor decode(const torch::Tensor& v, const torch::Tensor& W_FD) const;  ///< sum_i v_ni W_i: [N, D]
  torch::Tensor dots(const torch::Tensor& g_ND,
                     const torch::Tensor& W_FD) const;                           ///< g_n . W_i at each place
  torch::Tensor outer(const torch::Tensor& v, const torch::Tensor& a_ND) const;  ///< sum_n v_ni a_n: [F, D]

  /// Those of features first to last, which are counted from first.
  Entries within(int64_t first, int64_t last) const;

 private:
  static Entries of(ops::SparseRows places, int64_t F);
  const ops::SparseColumns& columns() const;

  bool holds_all_ = true;
  int64_t F_ = 0;
  torch::Tensor p_;
  ops::SparseRows places_;  // values undefined
  torch::Tensor rows_;      // int64 [E]
  mutable ops::SparseColumns columns_;
};

}  // namespace introspect::sae::training
