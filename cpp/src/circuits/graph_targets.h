#pragma once

#include <string>
#include <vector>

#include "circuits/attribution_rows.h"
#include "circuits/frozen_model.h"
#include "introspect/circuits/attribute.h"

namespace introspect::circuits {

/// What a graph explains: rows to make, and the nodes that they are of.
struct Targets {
  std::vector<RowTarget> rows;
  std::vector<GraphNode> nodes;
};

/// The targets that were given, or the likeliest next tokens. Throws as attribute.
Targets targets_of(const FrozenModel& frozen, const AttributeOptions& options);

/// A token as text, with the space that it begins a word with (which SentencePiece takes from a text's beginning).
std::string text_of(const models::Model& model, int64_t id);

}  // namespace introspect::circuits
