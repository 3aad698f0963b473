#include "engine/memory.h"

namespace introspect::engine {

TokenBytes::TokenBytes(const models::Config& cfg, torch::ScalarType dtype) {
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t wide = dtype == torch::kFloat64 ? 8 : 4;
  const int64_t n_keys = 2 * cfg.n_key_value_heads * cfg.d_head, n_queries = cfg.n_heads * cfg.d_head;
  in_block = element * (4 * cfg.d_model + 3 * (n_queries + n_keys) + 4 * cfg.d_mlp);
  keys = element * n_keys;
  residual = element * cfg.d_model;
  kept = wide * cfg.d_model;
  kept_weight = wide * cfg.n_heads;
}

}  // namespace introspect::engine
