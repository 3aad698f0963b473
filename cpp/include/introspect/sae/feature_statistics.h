#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/sae/contexts.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// What single features did at every token of some contexts, feature by feature: what feature pages are made of.
///
/// Only what is not 0 is held, 12 bytes each, so that any feature's page costs what that feature fired. A value; it
/// needs neither the model nor the dictionary again.
struct INTROSPECT_EXPORT FeatureActivations {
  Contexts contexts;
  torch::Tensor ids_n;      ///< int64: the features that were looked at, ascending
  torch::Tensor offsets;    ///< int64 [n + 1]: feature ids_n[i] has entries offsets[i] to offsets[i + 1]
  torch::Tensor places;     ///< int64 [entries]: context * T + token, ascending within a feature
  torch::Tensor values;     ///< float32 [entries], not 0
  int64_t read_tokens = 0;  ///< neither padding nor special
  int64_t d_sae = 0;
  std::string dictionary_hash, model_name, model_hash;

  int64_t n_features() const { return ids_n.size(0); }
  int64_t width() const { return contexts.tokens_NT.size(1); }  ///< T

  /// Its place in ids_n. Throws std::out_of_range for a feature that was not looked at.
  int64_t index(int64_t feature) const;

  /// One file. Throws IoError.
  void save(const std::filesystem::path& path) const;
  static FeatureActivations load(const std::filesystem::path& path);
};

struct FeatureActivationOptions {
  torch::Tensor ids;  ///< int64: these features only, the others not computed where possible; undefined: all
  int64_t batch_tokens = 4096;
  int64_t memory_budget = int64_t{2} << 30;  ///< bytes of entries; about 12 L0 a token
  Progress progress;
};

/// One pass of the contexts through the model, as far as the dictionary's last input, and the dictionary.
///
/// Rows of batchtopk are ranked within a pass: fold it to a jumprelu first (the trainer's and SAELens's saved form is one).
/// Throws before the first pass as evaluate does, and std::out_of_range for ids that are none; std::length_error after the
/// first one if the entries will not fit into the budget.
INTROSPECT_EXPORT FeatureActivations feature_activations(const models::Model& model,
                                                         const Dictionary& dictionary,
                                                         const Contexts& contexts,
                                                         const FeatureActivationOptions& options = {});

/// The same for rows that were read before: x [N, T, d_in] of the contexts.
INTROSPECT_EXPORT FeatureActivations feature_activations(const Dictionary& dictionary,
                                                         const Contexts& contexts, const torch::Tensor& x_NTD,
                                                         const FeatureActivationOptions& options = {});

/// One number a feature, in the order of ids_n.
struct FeatureTable {
  torch::Tensor count;        ///< int64: tokens at which it is not 0
  torch::Tensor contexts;     ///< int64: contexts with such a token
  torch::Tensor density;      ///< float64: count / tokens read
  torch::Tensor mean_active;  ///< float64: mean where it is not 0; 0 for dead ones
  torch::Tensor max_active;   ///< float64: the largest; 0 for dead ones
};
INTROSPECT_EXPORT FeatureTable feature_table(const FeatureActivations& activations);

/// Contexts in which a feature is active, each shown at one token.
struct ContextGroup {
  double low = -1, high = 0;  ///< of the values there; the top group has low -1
  double share = -1;  ///< of the tokens read with a value from low to high, zeros too; the top group has -1
  torch::Tensor rows_n;       ///< int64: which context
  torch::Tensor positions_n;  ///< int64: the token
  torch::Tensor values_nT;    ///< float32: of the whole context
};

struct ContextGroupOptions {
  int64_t top = 20;          ///< contexts with the highest values
  int64_t quantiles = 5;     ///< intervals of equal width from 0 to the largest value; 0: none
  int64_t per_quantile = 5;  ///< contexts drawn from each, once each
  uint64_t seed = 0;
};

/// SAEDashboard's groups: the top contexts, then the intervals from the highest down. Dead features have no groups.
///
/// A context is shown once a group, in the top one at its highest token. Drawn tokens have a value above 0 in the
/// interval. Throws std::out_of_range for a feature that was not looked at, std::invalid_argument for negative numbers.
INTROSPECT_EXPORT std::vector<ContextGroup> context_groups(const FeatureActivations& activations,
                                                           int64_t feature,
                                                           const ContextGroupOptions& options = {});

/// What a feature did in some contexts: [n, T] float32. Throws std::out_of_range.
INTROSPECT_EXPORT torch::Tensor feature_values(const FeatureActivations& activations, int64_t feature,
                                               const torch::Tensor& rows_n);

/// Features that fire at the same tokens.
struct Neighbours {
  torch::Tensor ids;         ///< int64 [k], the highest `similarity` first; fewer where fewer are alike
  torch::Tensor similarity;  ///< float64 [k]
  torch::Tensor
      cosine;  ///< float64 [k]: of coactive_features over values; of decoder_neighbours the similarity itself
  torch::Tensor shared;  ///< int64 [k]: tokens at which both are not 0; undefined for decoder_neighbours
};

/// The features whose values correlate most (Pearson, over the tokens read) with one's. Throws std::out_of_range.
INTROSPECT_EXPORT Neighbours coactive_features(const FeatureActivations& activations, int64_t feature,
                                               int64_t k = 10);

/// The features whose decoder rows point most alike (cosine). Throws std::out_of_range.
INTROSPECT_EXPORT Neighbours decoder_neighbours(const Dictionary& dictionary, int64_t feature,
                                                int64_t k = 10);

/// What a unit of each feature adds to the logits on the direct path: W_dec (in the units of the model, an input norm of
/// each row aside) through the final norm's weight, its
/// denominator left out, and W_U. [n, V], float32 (float64 of a float64 model).
///
/// LayerNorm takes the mean off a direction first. To have logits divide by the norm's denominator at the token; a soft cap
/// and b_U are left out. Decoder rows of attn.hook_z and mlp.hook_post go through W_O and W_out.
/// `site`: which output of a crosscoder, -1 the last. ids int64 [n].
/// Throws ConfigError for outputs from which there is no linear way to the logits (a norm stands after W_O or W_out, or
/// another point) and for a model whose blocks stay in its files, std::out_of_range for ids and sites, HookError and ShapeError as evaluate.
INTROSPECT_EXPORT torch::Tensor logit_effects(const models::Model& model, const Dictionary& dictionary,
                                              const torch::Tensor& ids, int64_t site = -1);

}  // namespace introspect::sae
