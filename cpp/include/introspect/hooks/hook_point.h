#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "introspect/export.h"

namespace introspect::hooks {

/// The places of a decoder at which an activation can be read or changed, in the order of the forward pass, with
/// TransformerLens's names and shapes.
///
/// Points up to kResidPost stand in every block (`blocks.{layer}.` before the name), the others once in the model.
/// Shapes use core/shapes.h: kQ, kRotQ and kZ are [B, T, H, K], kK, kV and kRotK [B, T, G, K], kAttnScores and
/// kPattern [B, H, T, S], kResult, kAttnIn and kQInput [B, T, H, D], kKInput and kVInput [B, T, G, D], the scales of
/// norms [B, T, 1] (of the norms of queries and keys [B, T, H or G, 1]), kMlpPre, kMlpPreLinear and kMlpPost
/// [B, T, M], kExpertWeights [B, T, E] (a router's probabilities of all its experts, before it chooses), kExpertIndices
/// int64 [B, T, k] (those it chose, the likeliest first), kUnembedOut [B, T, V], and all others [B, T, D].
enum class Point : uint8_t {
  kResidPre,
  kAttnIn,
  kQInput,
  kKInput,
  kVInput,
  kLn1Scale,
  kLn1Normalized,
  kQ,
  kK,
  kV,
  kQNormScale,
  kQNormNormalized,
  kKNormScale,
  kKNormNormalized,
  kRotQ,
  kRotK,
  kAttnScores,
  kPattern,
  kZ,
  kResult,
  kLn1PostScale,
  kLn1PostNormalized,
  kAttnOut,
  kResidMid,
  kMlpIn,
  kLn2Scale,
  kLn2Normalized,
  kMlpInput,  // what the MLP itself reads: normed and times the norm's weight
  kExpertWeights,
  kExpertIndices,
  kMlpPre,
  kMlpPreLinear,
  kMlpPost,
  kLn2PostScale,
  kLn2PostNormalized,
  kMlpOut,
  kResidPost,
  kEmbed,
  kPosEmbed,
  kLnFinalScale,
  kLnFinalNormalized,
  kUnembedIn,
  kUnembedOut,
};

inline constexpr int kBlockPoints = static_cast<int>(Point::kResidPost) + 1;
inline constexpr int kPoints = static_cast<int>(Point::kUnembedOut) + 1;
using PointSet = std::bitset<kPoints>;

/// One point of one layer; layer is -1 for the points that stand once in the model.
struct Site {
  Point point;
  int64_t layer = -1;
  bool operator==(const Site&) const = default;
};

/// The dimension that positions run along: that of the queries for scores and patterns.
inline int64_t position_axis(Point point) {
  return point == Point::kAttnScores || point == Point::kPattern ? 2 : 1;
}

/// True where an activation is whole numbers: interventions, which work on real ones, cannot change it; callbacks can.
inline bool is_discrete(Point point) {
  return point == Point::kExpertIndices;
}

/// The dimension that heads run along (query heads, or groups for keys and values), if the point has one.
INTROSPECT_EXPORT std::optional<int64_t> head_axis(Point point);

/// Points that nothing but a hook needs, and that are larger than what they are made of. "Every point" leaves them
/// out unless a flag says otherwise; by name they can always be hooked.
struct HookFlags {
  bool use_attn_result = false;      // kResult
  bool use_split_qkv_input = false;  // kQInput, kKInput, kVInput
  bool use_attn_in = false;          // kAttnIn
  bool use_hook_mlp_in = false;      // kMlpIn
  bool use_mlp_input = false;        // kMlpInput, which TransformerLens's HookedTransformer does not have
};

/// The hook points of one model: which there are, and how wide what is seen there is.
struct INTROSPECT_EXPORT HookPoints {
  int64_t n_layers = 0;
  int64_t d_model = 0, n_heads = 0, n_key_value_heads = 0, d_head = 0, d_mlp = 0, d_vocab = 0;
  int64_t num_experts = 0, experts_per_token = 0;
  PointSet points;  // those that a model of this architecture has

  bool has(Site site) const;

  /// The size of the last dimension at a point; undefined for scores and patterns, whose keys grow with the text.
  std::optional<int64_t> width(Point point) const;

  /// The number of heads at a point that has them.
  std::optional<int64_t> heads(Point point) const;

  /// Number of entries of a dense table over all sites.
  size_t n_sites() const { return static_cast<size_t>(n_layers * kBlockPoints + kPoints - kBlockPoints); }

  /// The place of a site in such a table: block sites first, layer by layer.
  size_t index(Site site) const {
    const auto p = static_cast<int64_t>(site.point);
    return static_cast<size_t>((site.layer >= 0 ? site.layer : n_layers - 1) * kBlockPoints + p);
  }

  /// Every hook name, in the order in which a forward pass meets them.
  std::vector<std::string> names(const HookFlags& flags = {}) const;

  /// The site a full name stands for. Throws HookError naming the nearest names if there is none.
  Site parse(std::string_view name) const;
};

/// The full name of a site: "blocks.3.attn.hook_z", "hook_embed".
INTROSPECT_EXPORT std::string hook_name(Site site);

/// The name of a point within its block or model: "attn.hook_z". Its inverse throws HookError for an unknown one.
INTROSPECT_EXPORT std::string_view point_name(Point point);
INTROSPECT_EXPORT Point parse_point(std::string_view name);

}  // namespace introspect::hooks
