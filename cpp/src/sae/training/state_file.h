#pragma once

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <torch/types.h>

#include "introspect/io/safetensors.h"

#include "core/json.h"
#include "sae/training/state.h"

namespace introspect::sae::training {

using Tensors = std::vector<std::pair<std::string, torch::Tensor>>;

/// Where activations come from, as JSON and back.
nlohmann::ordered_json origin_json(const DictionaryOrigin& from);
DictionaryOrigin origin_of(const JsonField<IoError>& field);

/// The plain numbers of a state, as JSON and back.
nlohmann::ordered_json state_json(const State& state);
void read_state(const JsonField<IoError>& field, State& state);

/// Weights, moments and counters under their names, a prefix before each.
void add_tensors(const State& state, const std::string& prefix, Tensors& to);

/// Tensors of a file, which must be there and of a shape. Throws IoError.
struct TensorReader {
  const io::SafetensorsFile& file;
  std::string who;
  torch::Device device;

  torch::Tensor operator()(const std::string& name, torch::ScalarType dtype, at::IntArrayRef shape) const;
};

/// What add_tensors wrote, for a state whose options, widths and numbers are set. `expected`: weights of the right shapes.
void read_tensors(const TensorReader& read, const std::string& prefix, const DictionaryWeights& expected,
                  State& state);

}  // namespace introspect::sae::training
