#include "introspect/hooks/hook_point.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/excerpt.h"
#include "core/nearest.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

constexpr std::array<std::string_view, kPoints> kNames = {
    "hook_resid_pre",
    "hook_attn_in",
    "hook_q_input",
    "hook_k_input",
    "hook_v_input",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.q_norm.hook_scale",
    "attn.q_norm.hook_normalized",
    "attn.k_norm.hook_scale",
    "attn.k_norm.hook_normalized",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "ln1_post.hook_scale",
    "ln1_post.hook_normalized",
    "hook_attn_out",
    "hook_resid_mid",
    "hook_mlp_in",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "ln2_post.hook_scale",
    "ln2_post.hook_normalized",
    "hook_mlp_out",
    "hook_resid_post",
    "hook_embed",
    "hook_pos_embed",
    "ln_final.hook_scale",
    "ln_final.hook_normalized",
    "unembed.hook_in",
    "unembed.hook_out",
};

constexpr std::string_view kBlocks = "blocks.";

constexpr HookFlags kEverything = {true, true, true, true};

bool asked_for(Point point, const HookFlags& flags) {
  switch (point) {
    case Point::kResult:
      return flags.use_attn_result;
    case Point::kQInput:
    case Point::kKInput:
    case Point::kVInput:
      return flags.use_split_qkv_input;
    case Point::kAttnIn:
      return flags.use_attn_in;
    case Point::kMlpIn:
      return flags.use_hook_mlp_in;
    default:
      return true;
  }
}

}  // namespace

std::optional<int64_t> head_axis(Point point) {
  switch (point) {
    case Point::kAttnScores:
    case Point::kPattern:
      return 1;
    case Point::kAttnIn:
    case Point::kQInput:
    case Point::kKInput:
    case Point::kVInput:
    case Point::kQ:
    case Point::kK:
    case Point::kV:
    case Point::kQNormScale:
    case Point::kQNormNormalized:
    case Point::kKNormScale:
    case Point::kKNormNormalized:
    case Point::kRotQ:
    case Point::kRotK:
    case Point::kZ:
    case Point::kResult:
      return 2;
    default:
      return std::nullopt;
  }
}

bool HookPoints::has(Site site) const {
  const bool in_block = static_cast<int>(site.point) < kBlockPoints;
  const bool layer_fits = in_block ? site.layer >= 0 && site.layer < n_layers : site.layer == -1;
  return layer_fits && points.test(static_cast<size_t>(site.point));
}

std::optional<int64_t> HookPoints::width(Point point) const {
  switch (point) {
    case Point::kAttnScores:
    case Point::kPattern:
      return std::nullopt;
    case Point::kLn1Scale:
    case Point::kLn1PostScale:
    case Point::kLn2Scale:
    case Point::kLn2PostScale:
    case Point::kLnFinalScale:
    case Point::kQNormScale:
    case Point::kKNormScale:
      return 1;
    case Point::kQ:
    case Point::kK:
    case Point::kV:
    case Point::kQNormNormalized:
    case Point::kKNormNormalized:
    case Point::kRotQ:
    case Point::kRotK:
    case Point::kZ:
      return d_head;
    case Point::kMlpPre:
    case Point::kMlpPreLinear:
    case Point::kMlpPost:
      return d_mlp;
    case Point::kUnembedOut:
      return d_vocab;
    default:
      return d_model;
  }
}

std::optional<int64_t> HookPoints::heads(Point point) const {
  if (!head_axis(point)) return std::nullopt;
  switch (point) {
    case Point::kKInput:
    case Point::kVInput:
    case Point::kK:
    case Point::kV:
    case Point::kKNormScale:
    case Point::kKNormNormalized:
    case Point::kRotK:
      return n_key_value_heads;
    default:
      return n_heads;
  }
}

std::string_view point_name(Point point) {
  return kNames[static_cast<size_t>(point)];
}

Point parse_point(std::string_view name) {
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  if (found == kNames.end())
    throw HookError(concat("hook point ", excerpt(name), " does not exist; the nearest names are ",
                           nearest_names(name, {kNames.begin(), kNames.end()})));
  return static_cast<Point>(found - kNames.begin());
}

std::string hook_name(Site site) {
  const auto name = point_name(site.point);
  return site.layer >= 0 ? concat(kBlocks, site.layer, ".", name) : std::string(name);
}

std::vector<std::string> HookPoints::names(const HookFlags& flags) const {
  std::vector<std::string> out;
  const auto add = [&](Site site) {
    if (has(site) && asked_for(site.point, flags)) out.push_back(hook_name(site));
  };
  add({Point::kEmbed});
  add({Point::kPosEmbed});
  for (int64_t layer = 0; layer < n_layers; ++layer)
    for (int p = 0; p < kBlockPoints; ++p) add({static_cast<Point>(p), layer});
  for (const auto point :
       {Point::kLnFinalScale, Point::kLnFinalNormalized, Point::kUnembedIn, Point::kUnembedOut})
    add({point});
  return out;
}

Site HookPoints::parse(std::string_view name) const {
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
  const Site site{static_cast<Point>(found - kNames.begin()), layer};
  if (found == kNames.end() || !has(site))
    throw HookError(concat("hook point ", excerpt(name), " does not exist in this model of ", n_layers,
                           " layers; the nearest names are ", nearest_names(name, names(kEverything))));
  return site;
}

}  // namespace introspect::hooks
