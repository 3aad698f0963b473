#pragma once

#include <cstdint>
#include <vector>

#include <torch/types.h>

namespace introspect::sae {

/// Tokens that a model is run on, row by row: the first lengths_N of each, what follows is padding.
///
/// Special tokens are run, for those after them see them, and not read: they count in no figure and no feature is said to
/// be active there. (Most residual streams have a massive activation at the first one.)
struct Contexts {
  torch::Tensor tokens_NT;              ///< int64 [N, T]
  torch::Tensor lengths_N;              ///< int64 [N], from 1 to T; undefined: T
  std::vector<int64_t> special_tokens;  ///< ids
};

}  // namespace introspect::sae
