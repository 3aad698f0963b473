#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::models {

class Model;
struct AdapterConfig;

/// What a new adapter is made of.
struct AdapterOptions {
  int64_t rank = 8;
  double alpha = 16;  ///< what is added is multiplied by alpha / rank
  std::vector<std::string>
      targets;  ///< ends of modules' names: "q_proj", "mlp.c_proj"; empty: every product of a block
  std::vector<int64_t> layers;  ///< empty: all
  uint64_t seed = 0;
};

/// A LoRA adapter in the form in which peft saves it: products of low rank for some modules of a model, which
/// Model::with_adapter puts into effect.
///
/// Source: Hu et al. 2021, arXiv:2106.09685; the files of peft 0.21 (LoraConfig, save_pretrained).
class INTROSPECT_EXPORT Adapter {
 public:
  /// What is added to the output of one module: scaling * B (A x).
  struct Module {
    torch::Tensor A, B;  // [r, in] and [out, r], float32 (float64 where the file has it)
    double scaling = 1;  // lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
  };

  /// An adapter that changes nothing yet, as peft starts one: A uniform within 1 / sqrt(in), B zero; float64 for a float64
  /// model.
  ///
  /// Throws std::invalid_argument for a rank below 1 or an alpha that is not finite and above 0, std::out_of_range for
  /// layers, and ConfigError, with the nearest names, for targets that no module's name ends with, or a model of no known
  /// architecture.
  static std::shared_ptr<const Adapter> create(const Model& model, const AdapterOptions& options);

  /// This one with other matrices for the same modules, of the same shapes. Throws ShapeError and ConfigError.
  std::shared_ptr<const Adapter> with_matrices(const std::map<std::string, Module>& modules) const;

  /// Writes adapter_config.json and adapter_model.safetensors, as peft does, into `folder`, made if it is not there. Throws
  /// IoError.
  void save(const std::filesystem::path& folder) const;

  /// Reads adapter_config.json and adapter_model.safetensors in `folder`; nothing in them is executed.
  ///
  /// any_base: an adapter that was trained here fits its own model only, told by its hash; true lets it run on others of
  /// the same shapes (the same weights in another quantisation, say). Files of peft tell no hash.
  ///
  /// Throws IoError for files that are missing or damaged; ConfigError for what plain LoRA on the products of blocks is
  /// not (another peft_type, DoRA, biases, modules_to_save, embeddings, start values that change the base model) and for
  /// weights that are there only as a pickle; ShapeError for matrices whose ranks are not the config's.
  static std::shared_ptr<const Adapter> load(const std::filesystem::path& folder, bool any_base = false);

  /// By the names in the trained model: "model.layers.3.self_attn.q_proj".
  const std::map<std::string, Module>& modules() const { return modules_; }

  /// Whether the adapter's config asks for a product in this module of this block.
  bool targets(const std::string& module, int64_t layer) const;

  /// As the config names it; empty: not at all.
  const std::string& base_model() const { return base_model_; }

  /// Hash of the model that it was trained on; empty where that is not known, or does not matter.
  const std::string& base_hash() const { return base_hash_; }

  /// Hex SHA-256 of every number in it.
  const std::string& hash() const { return hash_; }
  int64_t n_params() const;

 private:
  Adapter() = default;

  std::shared_ptr<const AdapterConfig> config_;
  std::map<std::string, Module> modules_;
  std::string base_model_, base_hash_, hash_;
};

}  // namespace introspect::models
