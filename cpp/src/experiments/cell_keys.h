#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "introspect/models/model.h"

#include "experiments/design.h"
#include "experiments/value_json.h"

namespace introspect::experiments {

/// The identity of what is added to the residual stream: hex SHA-256.
std::string directions_hash(const Directions& directions);

/// The identity of a list of tokens: hex SHA-256.
std::string ids_hash(const Ids& ids);

/// The places of readings in a store: hashes of everything that a reading depends on, and of nothing else.
class CellKeys {
 public:
  CellKeys(const models::Model& model, const Design& design);

  /// `added`: the identity of what is injected; empty: nothing.
  std::string reading(const Scene& scene, const Ask& ask, const std::string& added) const;

  std::string norms(const Scene& scene) const;

 private:
  nlohmann::ordered_json readout_fields(const Scene& scene, const Ask& ask) const;

  std::map<const Scene*, std::string> identities_;  // JSON fields
  const Design& design_;
};

}  // namespace introspect::experiments
