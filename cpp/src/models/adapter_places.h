#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "introspect/models/adapter.h"
#include "introspect/models/model.h"
#include "introspect/nn/linear.h"

#include "models/part_names.h"

namespace introspect::models {

/// A module of a model that an adapter can have a product for.
struct AdapterModule {
  std::string name;  // as the checkpoint calls it: "model.layers.3.self_attn.q_proj"
  int64_t layer = 0, n_in = 0, n_out = 0;
  bool is_transposed = false;  // the checkpoint keeps its matrix as [in, out]
};

/// All of them. Throws ConfigError for a model of no known architecture.
std::vector<AdapterModule> adapter_modules(const Model& model);

/// Where a module of an adapter stands in a block.
struct AdapterPlace {
  std::string module;
  std::string_view part;  // of nn::for_each_part
  RowOrder order = RowOrder::kPlain;
  nn::LowRank addition;  // B's rows in the layers' order
};

/// By layer. Throws as Model::with_adapter does for adapters of other models.
using AdapterPlaces = std::vector<std::vector<AdapterPlace>>;
AdapterPlaces places_of(const Adapter& adapter, const Model& model);

/// The matrices on their layers' devices, in the dtype in which their products are made.
AdapterPlaces on_devices_of(const Model& model, AdapterPlaces places);

/// A model with these additions, whose tensors it shares.
std::shared_ptr<const Model> with_additions(const Model& model, const AdapterPlaces& places,
                                            std::string hash);

}  // namespace introspect::models
