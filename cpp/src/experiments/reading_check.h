#pragma once

#include <map>
#include <string>

#include "introspect/experiments/result.h"
#include "introspect/experiments/store.h"

#include "experiments/design.h"

namespace introspect::experiments {

/// What cannot be true of a reading: probabilities outside [0, 1], ranks below 1; empty: nothing.
std::string problem_of(const Reading& reading);

/// The same of a stored cell, whose value may be no reading at all.
std::string problem_of(const Cell& cell);

/// What a question has been read as, and the norms of every block. Throws IoError that names file and cell for what cannot
/// be that.
Reading stored_reading(const Store& store, const std::string& key, const std::string& value,
                       const Design& design, const Ask& ask);
std::map<int64_t, double> stored_norms(const Store& store, const std::string& key, const std::string& value,
                                       int64_t n_layers);

}  // namespace introspect::experiments
