#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "introspect/export.h"

namespace introspect::hooks {

/// The places of a decoder at which an activation can be read or changed, with TransformerLens's names and shapes.
///
/// Points up to kMlpOut stand in every block (`blocks.{layer}.` before the name), the others once in the model.
/// Shapes use core/shapes.h: kQ and kZ are [B, T, H, K], kK and kV [B, T, G, K], kAttnScores and kPattern
/// [B, H, T, S], norms' scales [B, T, 1], kMlpPre and kMlpPost [B, T, M], and all others [B, T, D].
enum class Point : uint8_t {
  kResidPre,
  kLn1Scale,
  kLn1Normalized,
  kQ,
  kK,
  kV,
  kRotQ,
  kRotK,
  kAttnScores,
  kPattern,
  kZ,
  kAttnOut,
  kResidMid,
  kLn2Scale,
  kLn2Normalized,
  kMlpPre,
  kMlpPreLinear,
  kMlpPost,
  kMlpOut,
  kResidPost,
  kEmbed,
  kLnFinalScale,
  kLnFinalNormalized,
};

inline constexpr int kBlockPoints = static_cast<int>(Point::kResidPost) + 1;
inline constexpr int kModelPoints = 3;

/// One point of one layer; layer is -1 for the points that stand once in the model.
struct Site {
  Point point;
  int64_t layer = -1;

  /// The place of this site in a dense table over all sites of a model: block sites first, layer by layer.
  size_t index(int64_t n_layers) const {
    const auto p = static_cast<int64_t>(point);
    return static_cast<size_t>(layer >= 0 ? layer * kBlockPoints + p : (n_layers - 1) * kBlockPoints + p);
  }
  bool operator==(const Site&) const = default;
};

/// Number of entries of a table indexed by Site::index.
inline size_t n_sites(int64_t n_layers) {
  return static_cast<size_t>(n_layers * kBlockPoints + kModelPoints);
}

/// The full name of a site: "blocks.3.attn.hook_z", "hook_embed".
INTROSPECT_EXPORT std::string hook_name(Site site);

/// Every hook name of a model with `n_layers` blocks, in the order in which a forward pass meets them.
INTROSPECT_EXPORT std::vector<std::string> hook_names(int64_t n_layers);

/// The site a full name stands for. Throws HookError naming the nearest names if there is none.
INTROSPECT_EXPORT Site parse_hook_name(std::string_view name, int64_t n_layers);

}  // namespace introspect::hooks
