#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/activations/token_stream.h"
#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::activations {

/// A place whose activations are rows: heads stand one after another.
struct StreamSite {
  std::string hook_name;
  int64_t width = 0;  ///< filled in by the source
  int64_t model = 0;  ///< which of several models that read the same tokens
  bool operator==(const StreamSite&) const = default;
};

/// Rows of the same tokens at several sites: [N, width] each.
using SiteRows = std::vector<torch::Tensor>;

/// Where rows of activations come from, in order: a model that reads texts, or a file.
///
/// What a shuffling buffer holds of a row is its `columns`, which `rows` turns into activations when they are handed out: the
/// activations themselves, or the number of a row in a file.
class INTROSPECT_EXPORT ActivationSource {
 public:
  virtual ~ActivationSource() = default;

  virtual const std::vector<StreamSite>& sites() const = 0;
  virtual torch::ScalarType dtype() const = 0;

  /// The first rows of the source, about n of them (whole contexts), which `next` never gives from now on. To be called
  /// before `next`, in a resumed run too.
  virtual SiteRows hold_out(int64_t n) = 0;

  /// The columns of some rows, [N, ...] each with N > 0; empty: the end.
  virtual std::vector<torch::Tensor> next() = 0;
  virtual SiteRows rows(const std::vector<torch::Tensor>& columns) const = 0;

  /// Where the source stands, as JSON, with what its rows are made of. `restore` goes on there.
  /// Both throw IoError for a state of another source: of a model, other texts or options whose rows are others.
  /// `check_state` does nothing else, and begins its message with `who`, which holds the state.
  virtual std::string state() const = 0;
  virtual void check_state(const std::string& state, const std::string& who) const = 0;
  virtual void restore(const std::string& state) = 0;
};

struct ModelActivationsOptions {
  /// Positions of each context that are read, as a Python slice counts them ("seqpos_slice").
  std::optional<int64_t> first_position, end_position;
  int64_t position_step = 1;
  std::vector<int64_t> exclude_tokens;  ///< ids whose rows are dropped ("exclude_special_tokens")
  /// Rows longer than so many times the median of their pass, at any site, are dropped: attention sinks are hundreds of times
  /// as long as other rows. 0: none. dictionary_learning's "max_activation_norm_multiple".
  double max_norm_multiple = 0;
  torch::ScalarType dtype = torch::kFloat32;  ///< of rows: kBFloat16, kFloat32 or kFloat64
  int64_t memory_budget = int64_t{1} << 30;   ///< bytes of one pass's activations
  int64_t contexts_per_pass = 0;  ///< 0: as many as make a pass of 2,048 tokens and fit the budget
};

/// Activations of models at `sites`, as they read contexts of `tokens`.
///
/// A state fits where these are the same: tokens, each model's hash, precision (models::precision_name), kinds of device
/// and, in bfloat16 on the CPU, ops::bfloat16_products, positions, exclude_tokens, max_norm_multiple, and the version of
/// the numbers. Passes are then as large as they were.
///
/// Contexts run side by side, through the block of the highest site and no further: neither logits nor KV caches are
/// made. Memory is one pass's activations, whatever the length of the text.
/// Throws, before the first pass, std::invalid_argument for no models or sites, a point without a vector a position or
/// options out of range, HookError for a site that is not there, std::out_of_range for a model that is not there, ShapeError
/// for contexts longer than a model's n_ctx, ConfigError for models of different vocabularies.
INTROSPECT_EXPORT std::unique_ptr<ActivationSource> model_activations(
    std::vector<std::shared_ptr<const models::Model>> models, TokenStream tokens,
    std::vector<StreamSite> sites, const ModelActivationsOptions& options = {});

}  // namespace introspect::activations
