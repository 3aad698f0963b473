#pragma once

#include <string_view>

#include <torch/types.h>

#include "introspect/core/check.h"

namespace introspect::models {

/// Throws ConfigError for "meta"; `who` begins the message.
inline void check_holds_numbers(std::string_view who, torch::Device device) {
  check<ConfigError>(!device.is_meta(), who, ": device must hold a model's numbers, as 'cpu' does, got '",
                     device.str(), "', which knows shapes alone");
}

}  // namespace introspect::models
