#pragma once

#include <string>
#include <vector>

#include "introspect/experiments/result.h"
#include "introspect/models/model.h"

#include "experiments/design.h"
#include "experiments/experiment_graph.h"

namespace introspect::experiments {

/// What there is of one reading.
struct ReadRow {
  const Scene* scene = nullptr;
  const Ask* ask = nullptr;
  const Injection* injection = nullptr;
  const Parts* parts = nullptr;
  const Parts* base = nullptr;  // of the unsteered run, where readouts of an injected reading need it
};

/// Reads everything but texts in float32 over the whole vocabulary, as many rows at once as leaves logits within some tens
/// of MiB.
std::vector<Reading> read_out(const models::Model& model, const Design& design,
                              const std::vector<ReadRow>& rows);

/// Adds what readouts make of the text that was sampled.
void read_text(const models::Model& model, const Design& design, const ReadRow& row, const std::string& text,
               Reading& reading);

}  // namespace introspect::experiments
