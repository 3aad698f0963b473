#pragma once

#include <optional>
#include <stdexcept>
#include <string>

#include "introspect/circuits/attribute.h"

namespace introspect::python {

/// Where transcoders read, by name; none: as their files say.
inline std::optional<circuits::TranscoderInput> parse_input(const std::optional<std::string>& name) {
  if (!name) return std::nullopt;
  if (*name == "residual") return circuits::TranscoderInput::residual;
  if (*name == "normalized") return circuits::TranscoderInput::normalized;
  if (*name == "mlp") return circuits::TranscoderInput::mlp;
  throw std::invalid_argument("input must be residual, normalized or mlp, got '" + *name + "'");
}

}  // namespace introspect::python
