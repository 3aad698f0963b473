#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/intervention.h"
#include "introspect/models/model.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// A change of one feature: f' = gain f + value. Adding is {i, 1, a}, clamping {i, 0, c}, scaling {i, g, 0} and
/// ablating {i, 0, 0}.
struct FeatureEdit {
  int64_t feature = 0;
  double gain = 1;
  double value = 0;
  bool operator==(const FeatureEdit&) const = default;
};

/// What a dictionary's output takes the place of.
enum class Keeps : uint8_t {
  nothing,     ///< x becomes decode(f')
  error,       ///< x becomes decode(f') + (x - decode(f)): with nothing edited x itself, bit for bit
  everything,  ///< x becomes x + decode(f'): a cross-layer transcoder's parts, after the first
};

/// Where a dictionary reads and writes: full hook names. Empty: where it was trained.
struct SpliceSites {
  std::string hook_name, hook_name_out;
};

/// A dictionary as an intervention: planned, by row, in graphs, under a KV cache and with gradients like any other.
///
/// With f = encode(x), f' its features after the edits and s the strength, x becomes x + s (y - x), y being what `keeps`
/// says. With Keeps::error only the edited features are computed: x + s sum_i (f'_i - f_i) W_dec_i. A transcoder encodes
/// what stands at its input and changes what stands at its output. Positions, rows and a text filter are set on the
/// result.
///
/// Throws ConfigError for a dictionary of several sites, of sites that are not known or of architecture batchtopk, whose
/// rows depend on one another (its threshold makes a jumprelu of it), HookError for a point that does not exist,
/// std::out_of_range for a feature that does not, and std::invalid_argument for one that is edited twice.
INTROSPECT_EXPORT hooks::Intervention splice(const Dictionary& dictionary,
                                             const std::vector<FeatureEdit>& edits = {},
                                             Keeps keeps = Keeps::error, double strength = 1,
                                             const SpliceSites& sites = {});

/// Registers the operators of `splice` with hooks::register_operator. Loading the library does it; calling it again
/// does nothing.
///
/// "sae_standard", "sae_topk", .. change what they read, "transcoder_standard", .. read the intervention's source; there is
/// one of each architecture but batchtopk. Operands are those of DictionaryWeights::operands and, for edits, "features"
/// int64 [n], "gains" [n] and "values" [n]. Parameters: "keeps" (0, 1 or 2, as Keeps; 1 if not given) and the fields of
/// DictionaryConfig, "input_norm" by its number.
INTROSPECT_EXPORT void register_operators();

/// What a person must know of a dictionary in a model, where it is no error.
struct SiteCheck {
  hooks::Site input, output;
  std::vector<std::string> warnings;
};

/// Where a dictionary stands in a model, and whether it belongs there.
///
/// An origin that is not known, a model of another name, a longer context than the model's, another rule for BOS and
/// another centring of the weights that write to the stream are warnings, in words. `any_model` makes a warning of
/// another model hash too.
///
/// Throws ConfigError for another model hash and sites that are not known, HookError for a point or layer that the model
/// does not have, ShapeError for another width.
INTROSPECT_EXPORT SiteCheck check_model(const Dictionary& dictionary, const models::Model& model,
                                        const SpliceSites& sites = {}, bool any_model = false);

/// What is seen within a splice, by SAELens's name of it, and goes on in its place.
using SeePoint = std::function<torch::Tensor(const std::string& name, const torch::Tensor& value)>;

/// What a splice makes of x, with everything in between shown: hook_sae_input (x, heads side by side),
/// hook_sae_acts_pre (not of matching pursuit), hook_sae_acts_post, hook_sae_recons (before the input norm is undone and
/// a skip added), with the error kept hook_sae_error, and hook_sae_output.
///
/// The error is that of the features before anything is replaced, and a constant for gradients: they flow through the
/// features alone, as in SAELens. Nothing replaced: x, bit for bit, if the error is kept. `source`: what a transcoder
/// reads. Throws ShapeError.
INTROSPECT_EXPORT torch::Tensor splice_seen(const Dictionary& dictionary, const torch::Tensor& x,
                                            const torch::Tensor& source, bool keeps_error,
                                            const SeePoint& see);

}  // namespace introspect::sae
