#pragma once

#include <map>
#include <string>

#include "introspect/models/model.h"

namespace introspect::models {

/// The first release that computed these numbers. Raise it when results may change: readings of another number are not
/// found in stores, and are made again; folders of activations and trainings of another number are not gone on with.
/// Releases that change no number leave it as it is, so that these stay valid.
inline constexpr auto kNumericsVersion = "0.1.0";

/// The kinds of device that a model's embedding and blocks are on, in the order of the alphabet: "cpu", "cpu+cuda".
std::string device_kind(const Model& model);

/// What a model's numbers depend on beside its weights, by name: "precision" (precision_name), "device" (device_kind),
/// "numerics" (kNumericsVersion) and, with bfloat16 on the CPU, "products" (ops::bfloat16_products).
std::map<std::string, std::string> numerics_of(const Model& model);

}  // namespace introspect::models
