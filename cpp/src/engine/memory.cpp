#include "engine/memory.h"

#include <algorithm>

namespace introspect::engine {

TokenBytes::TokenBytes(const models::Config& cfg, torch::ScalarType dtype) {
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t wide = dtype == torch::kFloat64 ? 8 : 4;
  const int64_t n_keys = 2 * cfg.n_key_value_heads * cfg.d_head, n_queries = cfg.n_heads * cfg.d_head;
  const int64_t n_mlps =
      std::max<int64_t>(cfg.experts_per_token, 1);  // an expert's tokens are copied to it and back
  in_block = element * (4 * cfg.d_model + 3 * (n_queries + n_keys) + n_mlps * 4 * cfg.d_mlp +
                        (cfg.is_mixture() ? 2 * n_mlps * cfg.d_model : 0));
  keys = element * n_keys;
  residual = element * cfg.d_model;
  kept = wide * cfg.d_model;
  kept_weight = wide * cfg.n_heads;
}

}  // namespace introspect::engine
