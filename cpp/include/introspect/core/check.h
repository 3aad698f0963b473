#pragma once

#include <sstream>
#include <string>

#include "introspect/core/error.h"

namespace introspect {

/// The parts written one after another, as to a stream.
template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws `E` with the parts written one after another, unless `ok`. E is one of core/error.h, std::out_of_range
/// or std::invalid_argument.
///
///     check<ShapeError>(x.dim() == 3, "rms_norm: x must be [batch, pos, d_model], got ", x.sizes());
template <typename E, typename... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) [[unlikely]]
    throw E(concat(parts...));
}

}  // namespace introspect
