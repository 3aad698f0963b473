#pragma once

#include <filesystem>
#include <memory>
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

/// Writes a trainer's file, whole or not at all, and its folder where there is none. Throws IoError.
void save_trainer(const std::filesystem::path& path, const std::string& who, const std::string& format,
                  const Tensors& tensors, const TrainerOptions& options, const DictionaryOrigin& origin,
                  const nlohmann::ordered_json& state);

/// What save_trainer wrote.
class TrainerFile {
 public:
  /// Throws IoError for a file that is missing, damaged or of another format.
  TrainerFile(const std::filesystem::path& path, std::string who, const std::string& format);

  TrainerOptions options() const;
  DictionaryOrigin origin() const;
  JsonField<IoError> state() const;  // refers to this file
  TensorReader tensors(torch::Device device) const { return {*file_, who_, device}; }

 private:
  const std::string& metadata(const std::string& key) const;

  std::string who_;
  std::shared_ptr<const io::SafetensorsFile> file_;
  nlohmann::json state_;
};

/// What add_tensors wrote, for a state whose options, widths and numbers are set. `expected`: weights of the right shapes.
void read_tensors(const TensorReader& read, const std::string& prefix, const DictionaryWeights& expected,
                  State& state);

}  // namespace introspect::sae::training
