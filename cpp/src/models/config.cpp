#include "introspect/models/config.h"

#include <array>
#include <cmath>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::models {

void Config::validate() const {
  const std::array<std::pair<const char*, int64_t>, 8> sizes = {{{"n_layers", n_layers},
                                                                 {"d_model", d_model},
                                                                 {"n_heads", n_heads},
                                                                 {"n_key_value_heads", n_key_value_heads},
                                                                 {"d_head", d_head},
                                                                 {"d_mlp", d_mlp},
                                                                 {"d_vocab", d_vocab},
                                                                 {"n_ctx", n_ctx}}};
  for (const auto& [name, value] : sizes)
    check<ConfigError>(value > 0 && value < (int64_t{1} << 31), "Config: ", name, " must be positive, got ",
                       value);
  check<ConfigError>(n_heads % n_key_value_heads == 0,
                     "Config: n_heads must be a multiple of n_key_value_heads, got ", n_heads, " and ",
                     n_key_value_heads);
  check<ConfigError>(d_head % 2 == 0, "Config: d_head must be even for rotary positions, got ", d_head);
  check<ConfigError>(std::isfinite(eps) && eps >= 0, "Config: eps must not be negative, got ", eps);
  check<ConfigError>(std::isfinite(rotary_base) && rotary_base > 0,
                     "Config: rotary_base must be positive, got ", rotary_base);
  check<ConfigError>(act_fn == "silu", "Config: act_fn must be silu, got ", act_fn);
}

}  // namespace introspect::models
