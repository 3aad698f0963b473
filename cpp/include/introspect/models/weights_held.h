#pragma once

#include <string>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// kAsStored if any matrix of a model is held in quantised blocks, in memory or in the files, otherwise kDense.
INTROSPECT_EXPORT WeightsHeld weights_held(const Model& model);

/// "dense" or "as stored".
INTROSPECT_EXPORT std::string to_string(WeightsHeld held);

/// True for weights as stored in a dtype of 16 bits: values that are unpacked for products and readouts of few rows are not
/// rounded to the dtype as dense ones are. In float32 and float64 both ways multiply the same values: false.
INTROSPECT_EXPORT bool multiplies_unrounded(const Model& model);

/// What a model computes with, as results and the keys of their readings tell it: "float32", "bfloat16", and where it
/// multiplies_unrounded "bfloat16, weights as stored".
INTROSPECT_EXPORT std::string precision_name(const Model& model);

}  // namespace introspect::models
