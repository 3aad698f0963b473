#pragma once

#include <map>
#include <string>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"

namespace introspect::hooks {

/// Tensors by the hash of their content.
using TensorTable = std::map<std::string, torch::Tensor>;

/// The SHA-256 of a tensor's dtype, shape and bytes (row-major, little-endian), 64 hexadecimal digits: equal for
/// equal content, wherever it lies. Throws ShapeError if it is undefined or not dense.
INTROSPECT_EXPORT std::string tensor_hash(const torch::Tensor& tensor);

/// The intervention as JSON in which tensors stand by their hash; the tensors themselves are put into `table`, on the
/// CPU, without gradients.
///
///     {"op": "add", "point": "hook_resid_post", "strength": 4.0, "first_position": 0, "last_position": null,
///      "positions": [], "heads": [], "rows": [], "values": {"8": "9f86d0...", "9": null}}
///
/// and, only where there are some, "parameters": {"angle": 30.0} and "text": {"phase": "prompt", "tokens": [5, 7],
/// "not_tokens": [2], "after": [9], "skip_padding": true}, of which the defaults are left out.
///
/// Throws std::invalid_argument for a strength or parameter that is not finite.
INTROSPECT_EXPORT std::string to_json(const Intervention& intervention, TensorTable& table);

/// The intervention that `json` describes, tensors taken from `table`. What is left out has Intervention's default.
///
/// Throws ConfigError for JSON that is none or not an intervention, a key or operator that is not known, a hash that
/// is not in the table and a tensor that does not have its hash; HookError for an unknown point.
INTROSPECT_EXPORT Intervention from_json(const std::string& json, const TensorTable& table);

}  // namespace introspect::hooks
