#pragma once

#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/models/model.h"
#include "introspect/sae/contexts.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// Contexts that are run together. Rows of like length stand together, so that little of a pass is padding.
struct ContextBatch {
  torch::Tensor rows_B;     // int64: which of the contexts
  torch::Tensor tokens_BT;  // int64, cut to the longest
  torch::Tensor real_BT;    // bool: no padding
  torch::Tensor read_BT;    // bool: neither padding nor special
};

/// Throws ShapeError for tokens, lengths or contexts that are none, longer than n_ctx or out of range,
/// std::invalid_argument if no token is left to read. `who` begins the message.
std::vector<ContextBatch> batches(const char* who, const models::Config& cfg, const Contexts& contexts,
                                  int64_t batch_tokens);

/// The contexts without the BOS tokens at which the dictionary is zero by construction (DictionaryOrigin::masks_bos).
Contexts without_masked(const models::Model& model, const Dictionary& dictionary, const Contexts& contexts);

/// The sites that a dictionary reads or writes in one model.
class Sites {
 public:
  /// Throws ConfigError for a dictionary that does not say where it stands, or stands in two models; HookError and ShapeError
  /// for a site that the model does not have, or of another width.
  Sites(const char* who, const models::Model& model, const std::vector<DictionarySite>& sites);

  static Sites inputs(const char* who, const models::Model& model, const Dictionary& dictionary);
  static Sites outputs(const char* who, const models::Model& model, const Dictionary& dictionary);

  int64_t first_layer() const;  ///< -1 for the embedding
  int64_t last_layer() const;
  const std::vector<DictionarySite>& all() const { return sites_; }

  /// Has `hooks` keep what stands at the sites.
  void record(hooks::HookRegistry& hooks, const std::shared_ptr<hooks::ActivationCache>& cache) const;
  /// What was kept, side by side: [B, T, width].
  torch::Tensor joined(const hooks::ActivationCache& cache) const;
  /// Has `hooks` put y [B, T, width] there.
  void replace(hooks::HookRegistry& hooks, const torch::Tensor& y_BTD) const;

 private:
  std::vector<DictionarySite> sites_;
  std::vector<hooks::Site> places_;
};

}  // namespace introspect::sae
