#pragma once

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::analysis {

/// What of a later head reads what an earlier one writes.
enum class Composition {
  kQ,  // its queries: ||W_OV W_Q W_K^T|| / (||W_OV|| ||W_Q W_K^T||)
  kK,  // its keys: ||W_OV W_K W_Q^T|| / (...)
  kV,  // its values: ||W_OV W_V W_O|| / (...)
};

/// Composition scores of all pairs of heads, [L, H, L, H]: earlier head first, zero unless its layer is the lower one.
///
/// Norms are Frobenius norms, matrices act on rows, W_OV = W_V W_O is the earlier head's. The weights are taken as
/// they are: norms between heads count only where they were folded into them. Rotary positions are left out of
/// W_Q W_K^T, as for a query and a key at one position. Products stay factored: nothing of D x D entries is made.
/// float32 at least.
/// Source: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
INTROSPECT_EXPORT torch::Tensor composition_scores(const models::Model& model, Composition mode);

}  // namespace introspect::analysis
