#pragma once

#include <string>
#include <vector>

#include "introspect/experiments/protocol.h"

namespace introspect::experiments {

// What stands in a protocol's texts for something that is only known later.
inline constexpr auto kQuestion = "$QUESTION";
inline constexpr auto kConcept = "$CONCEPT";

/// Replaces the first occurrence in every turn.
void fill(std::vector<text::Message>& turns, const std::string& placeholder, const std::string& text);

/// The conversations that controls can be asked in, for messages.
std::string conversation_names(const Protocol& protocol);

}  // namespace introspect::experiments
