#pragma once

#include <string>
#include <vector>

#include <torch/types.h>

#include "circuits/decoder.h"
#include "circuits/prompts.h"
#include "introspect/core/progress.h"

namespace introspect::circuits {

/// True for the edges of these names, bool [senders, receivers]; all of them for no names. Throws as Nodes::parse_edge.
torch::Tensor chosen_edges(const Nodes& nodes, const std::vector<std::string>& names);

/// How much each chosen edge changes the metric when the receiver alone sees the sender's output changed: float64
/// [senders, receivers], summed over the batch. Many edges go through one pass, from the receiver's layer on.
torch::Tensor exact_edges(const Decoder& decoder, const Measure& measure, const Decoder::Run& clean,
                          const torch::Tensor& change_UBTD, const torch::Tensor& chosen,
                          const Progress& progress);

}  // namespace introspect::circuits
