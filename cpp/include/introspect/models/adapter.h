#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::models {

struct AdapterConfig;

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

  /// Reads adapter_config.json and adapter_model.safetensors in `folder`; nothing in them is executed.
  ///
  /// Throws IoError for files that are missing or damaged; ConfigError for what plain LoRA on the products of blocks is
  /// not (another peft_type, DoRA, biases, modules_to_save, embeddings, start values that change the base model) and for
  /// weights that are there only as a pickle; ShapeError for matrices whose ranks are not the config's.
  static std::shared_ptr<const Adapter> load(const std::filesystem::path& folder);

  /// By the names in the trained model: "model.layers.3.self_attn.q_proj".
  const std::map<std::string, Module>& modules() const { return modules_; }

  /// Whether the adapter's config asks for a product in this module of this block.
  bool targets(const std::string& module, int64_t layer) const;

  /// As the config names it; empty: not at all.
  const std::string& base_model() const { return base_model_; }

  /// Hex SHA-256 of every number in it.
  const std::string& hash() const { return hash_; }
  int64_t n_params() const;

 private:
  Adapter() = default;

  std::shared_ptr<const AdapterConfig> config_;
  std::map<std::string, Module> modules_;
  std::string base_model_, hash_;
};

}  // namespace introspect::models
