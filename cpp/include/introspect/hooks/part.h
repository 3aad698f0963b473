#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::hooks {

/// Positions start, start + step, ... before stop, as a Python slice counts them; an open end is the tensor's.
struct PositionRange {
  std::optional<int64_t> start, stop;
  int64_t step = 1;  // at least 1
  bool operator==(const PositionRange&) const = default;
};

/// Every position, one position (whose dimension is dropped), a range, or a list in the order given.
using Positions = std::variant<std::monostate, int64_t, PositionRange, std::vector<int64_t>>;

/// The part of an activation that is asked for. Positions count within the tensor of one pass, whatever a KV cache
/// holds before it; negative ones, of heads too, count from the end. Of scores and patterns they are the queries'.
struct Part {
  Positions positions;
  std::vector<int64_t> heads;  // empty: every head

  bool everything() const { return std::holds_alternative<std::monostate>(positions) && heads.empty(); }
  bool operator==(const Part&) const = default;
};

/// The positions of a part, each 0 to n - 1, of a tensor that has n. Throws std::out_of_range for one that is not
/// there (a range is cut instead, as in Python) and std::invalid_argument for a step below 1.
INTROSPECT_EXPORT std::vector<int64_t> position_indices(const Part& part, int64_t n);

/// x with the part's positions along `axis`; one position stays as a dimension of size 1. A view where it can be.
/// Throws as position_indices does.
INTROSPECT_EXPORT torch::Tensor take_positions(const Part& part, const torch::Tensor& x, int64_t axis);

/// x with the part's heads along `axis`. A view where it can be. Throws std::out_of_range for a head that is not there.
INTROSPECT_EXPORT torch::Tensor take_heads(const Part& part, const torch::Tensor& x, int64_t axis);

/// The part of `x`, an activation at `point`: its positions (the dimension dropped where they are one) and heads.
///
/// A view where it can be. Throws as the functions above, and std::invalid_argument for heads of a point without.
INTROSPECT_EXPORT torch::Tensor take(const Part& part, Point point, const torch::Tensor& x);

}  // namespace introspect::hooks
