#pragma once

#include "introspect/export.h"

namespace introspect::steering {

/// Registers the operators of steering with hooks::register_operator. Loading the library does it; calling it again
/// does nothing.
///
/// With x the activation, v the layer's operand (one for all rows and heads, or as hooks/intervention.h says), u = v / |v|
/// and s the strength, they are
///
///     norm_preserving_add  (x + s v) |x| / |x + s v|
///     multiply             x (1 + s (v - 1)), element by element: a mask of dropout
///     project_to           x + s (target - x.u) u, so that x.u = target for s = 1
///     clamp                x + s (min(max(x.u, low), high) - x.u) u; either end may be left out
///     rotate               x turned by s angle degrees, from row 0 of v towards row 1
///     angular              x with its part in the plane of v's rows at `angle` degrees from row 0 towards row 1
///                          (s must be 1)
///     adaptive_angular     the same where the product of x and row 0 is positive, and x elsewhere (s must be 1)
///
/// A zero v leaves x as it is, but for `multiply`. The last three take v [2, W], two independent rows; rows that are not perpendicular are
/// made so, row 0 keeping its direction. A single row, [W] or [1, W], stands for the plane of v and x itself: `rotate`
/// turns x towards v, `angular` puts it at this angle from v; an x along v stays. They keep the norm of x and all that is
/// perpendicular to the plane.
///
/// Sources: `angular` and `adaptive_angular` are equations of Vu & Nguyen 2025 (Angular Steering), arXiv:2510.26243,
/// with its basis b1, b2 of the feature direction and another one; `norm_preserving_add` is repeng's normalize=True.
INTROSPECT_EXPORT void register_operators();

}  // namespace introspect::steering
