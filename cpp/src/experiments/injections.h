#pragma once

#include <string>
#include <vector>

#include "experiments/design.h"

namespace introspect::experiments {

/// Whether an injection takes its lengths from vectors.
bool takes_vectors(const Protocol& protocol);

/// How many random vectors are run beside a concept's own: rotations of it, and those that were given.
int64_t n_nulls(const Protocol& protocol, const std::string& concept_name, const ExperimentOptions& options);

/// The words that a protocol is about.
std::vector<std::string> concepts(const NamedVectors& vectors, const ExperimentOptions& options);

/// Which text is swapped in for a concept: one for all where it does not hold the concept's word.
std::string swapped_name(const Protocol& protocol, const std::string& word);

/// Everything that is injected: vectors and their nulls, or what the protocol puts in their place. Throws
/// std::invalid_argument where models or concepts are missing that the protocol needs.
void add_injections(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                    const ExperimentOptions& options, Design& design);

}  // namespace introspect::experiments
