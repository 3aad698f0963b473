#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "introspect/models/model.h"

#include "experiments/plan.h"

namespace introspect::experiments {

/// "float32", "bfloat16", ...
std::string dtype_name(torch::ScalarType dtype);

/// The identity of what is added to the residual stream: hex SHA-256.
std::string directions_hash(const Directions& directions);

/// The identity of a list of tokens: hex SHA-256.
std::string ids_hash(const Ids& ids);

/// The places of readings in a store: hashes of everything that a reading depends on, and of nothing else.
class CellKeys {
 public:
  CellKeys(const models::Model& model, const Protocol& protocol, const Plan& plan, uint64_t seed);

  /// `added`: the identity of what is injected; empty: nothing.
  std::string reading(const Scene& scene, const Ask& ask, const std::string& added) const;

  std::string norms(const Scene& scene) const;

 private:
  std::map<const Scene*, std::string> identities_;  // JSON fields
  const Protocol& protocol_;
  const Plan& plan_;
  uint64_t seed_;
};

}  // namespace introspect::experiments
