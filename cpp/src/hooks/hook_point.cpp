#include "introspect/hooks/hook_point.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <numeric>

#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

constexpr std::array<std::string_view, kBlockPoints + kModelPoints> kNames = {
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
    "hook_embed",
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
};

constexpr std::string_view kBlocks = "blocks.";

/// Levenshtein distance, for suggestions.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitution = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
    }
  }
  return row.back();
}

std::string nearest_names(std::string_view name, int64_t n_layers) {
  std::vector<std::pair<size_t, std::string>> candidates;
  for (auto& known : hook_names(n_layers))
    candidates.emplace_back(edit_distance(name, known), std::move(known));
  const size_t n = std::min<size_t>(3, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(n),
                    candidates.end());
  std::string out;
  for (size_t i = 0; i < n; ++i) out += (i ? ", " : "") + candidates[i].second;
  return out;
}

}  // namespace

std::string hook_name(Site site) {
  const auto& name = kNames[static_cast<size_t>(site.point)];
  return site.layer >= 0 ? concat(kBlocks, site.layer, ".", name) : std::string(name);
}

std::vector<std::string> hook_names(int64_t n_layers) {
  std::vector<std::string> names = {hook_name({Point::kEmbed})};
  for (int64_t layer = 0; layer < n_layers; ++layer)
    for (int p = 0; p < kBlockPoints; ++p) names.push_back(hook_name({static_cast<Point>(p), layer}));
  names.push_back(hook_name({Point::kLnFinalScale}));
  names.push_back(hook_name({Point::kLnFinalNormalized}));
  return names;
}

Site parse_hook_name(std::string_view name, int64_t n_layers) {
  int64_t layer = -1;
  std::string_view rest = name;
  if (rest.starts_with(kBlocks)) {
    rest.remove_prefix(kBlocks.size());
    const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), layer);
    const bool numbered =
        error == std::errc() && end != rest.data() + rest.size() && *end == '.' && layer >= 0;
    rest = numbered ? rest.substr(static_cast<size_t>(end - rest.data()) + 1) : std::string_view{};
  }
  const auto found = std::find(kNames.begin(), kNames.end(), rest);
  const bool in_block = found - kNames.begin() < kBlockPoints;
  check<HookError>(found != kNames.end() && in_block == (layer >= 0) && layer < n_layers, "hook point '",
                   name, "' does not exist in a model of ", n_layers, " layers; the nearest names are ",
                   nearest_names(name, n_layers));
  return {static_cast<Point>(found - kNames.begin()), layer};
}

}  // namespace introspect::hooks
