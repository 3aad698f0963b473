#include "introspect/hooks/hook_point.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "core/excerpt.h"
#include "core/nearest.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

enum class Width : uint8_t { kOne, kDModel, kDHead, kDMlp, kDVocab, kKeys, kExperts, kChosen };
enum class Heads : uint8_t { kNone, kPerHead, kPerGroup };

/// What there is to know of a point. A new one is a line here and a name in the enum.
struct PointInfo {
  Point point;
  std::string_view name;
  Width width;
  Heads heads = Heads::kNone;
  bool HookFlags::* flag = nullptr;  // "every point" leaves it out unless this says otherwise
};

constexpr std::array<PointInfo, kPoints> kTable = {{
    {Point::kResidPre, "hook_resid_pre", Width::kDModel},
    {Point::kAttnIn, "hook_attn_in", Width::kDModel, Heads::kPerHead, &HookFlags::use_attn_in},
    {Point::kQInput, "hook_q_input", Width::kDModel, Heads::kPerHead, &HookFlags::use_split_qkv_input},
    {Point::kKInput, "hook_k_input", Width::kDModel, Heads::kPerGroup, &HookFlags::use_split_qkv_input},
    {Point::kVInput, "hook_v_input", Width::kDModel, Heads::kPerGroup, &HookFlags::use_split_qkv_input},
    {Point::kLn1Scale, "ln1.hook_scale", Width::kOne},
    {Point::kLn1Normalized, "ln1.hook_normalized", Width::kDModel},
    {Point::kQ, "attn.hook_q", Width::kDHead, Heads::kPerHead},
    {Point::kK, "attn.hook_k", Width::kDHead, Heads::kPerGroup},
    {Point::kV, "attn.hook_v", Width::kDHead, Heads::kPerGroup},
    {Point::kQNormScale, "attn.q_norm.hook_scale", Width::kOne, Heads::kPerHead},
    {Point::kQNormNormalized, "attn.q_norm.hook_normalized", Width::kDHead, Heads::kPerHead},
    {Point::kKNormScale, "attn.k_norm.hook_scale", Width::kOne, Heads::kPerGroup},
    {Point::kKNormNormalized, "attn.k_norm.hook_normalized", Width::kDHead, Heads::kPerGroup},
    {Point::kRotQ, "attn.hook_rot_q", Width::kDHead, Heads::kPerHead},
    {Point::kRotK, "attn.hook_rot_k", Width::kDHead, Heads::kPerGroup},
    {Point::kAttnScores, "attn.hook_attn_scores", Width::kKeys, Heads::kPerHead},
    {Point::kPattern, "attn.hook_pattern", Width::kKeys, Heads::kPerHead},
    {Point::kZ, "attn.hook_z", Width::kDHead, Heads::kPerHead},
    {Point::kResult, "attn.hook_result", Width::kDModel, Heads::kPerHead, &HookFlags::use_attn_result},
    {Point::kLn1PostScale, "ln1_post.hook_scale", Width::kOne},
    {Point::kLn1PostNormalized, "ln1_post.hook_normalized", Width::kDModel},
    {Point::kAttnOut, "hook_attn_out", Width::kDModel},
    {Point::kResidMid, "hook_resid_mid", Width::kDModel},
    {Point::kMlpIn, "hook_mlp_in", Width::kDModel, Heads::kNone, &HookFlags::use_hook_mlp_in},
    {Point::kLn2Scale, "ln2.hook_scale", Width::kOne},
    {Point::kLn2Normalized, "ln2.hook_normalized", Width::kDModel},
    {Point::kMlpInput, "mlp.hook_in", Width::kDModel, Heads::kNone, &HookFlags::use_mlp_input},
    {Point::kExpertWeights, "mlp.hook_expert_weights", Width::kExperts},
    {Point::kExpertIndices, "mlp.hook_expert_indices", Width::kChosen},
    {Point::kMlpPre, "mlp.hook_pre", Width::kDMlp},
    {Point::kMlpPreLinear, "mlp.hook_pre_linear", Width::kDMlp},
    {Point::kMlpPost, "mlp.hook_post", Width::kDMlp},
    {Point::kLn2PostScale, "ln2_post.hook_scale", Width::kOne},
    {Point::kLn2PostNormalized, "ln2_post.hook_normalized", Width::kDModel},
    {Point::kMlpOut, "hook_mlp_out", Width::kDModel},
    {Point::kResidPost, "hook_resid_post", Width::kDModel},
    {Point::kEmbed, "hook_embed", Width::kDModel},
    {Point::kPosEmbed, "hook_pos_embed", Width::kDModel},
    {Point::kLnFinalScale, "ln_final.hook_scale", Width::kOne},
    {Point::kLnFinalNormalized, "ln_final.hook_normalized", Width::kDModel},
    {Point::kUnembedIn, "unembed.hook_in", Width::kDModel},
    {Point::kUnembedOut, "unembed.hook_out", Width::kDVocab},
}};

constexpr bool in_order() {
  for (size_t i = 0; i < kTable.size(); ++i)
    if (static_cast<size_t>(kTable[i].point) != i) return false;
  return true;
}
static_assert(in_order(), "the table must hold the points in the order of the enum");

const PointInfo& info(Point point) {
  return kTable[static_cast<size_t>(point)];
}

constexpr std::string_view kBlocks = "blocks.";

std::optional<Point> find_point(std::string_view name) {
  const auto found =
      std::find_if(kTable.begin(), kTable.end(), [&](const PointInfo& point) { return point.name == name; });
  return found == kTable.end() ? std::nullopt : std::optional(found->point);
}

constexpr HookFlags kEverything = {true, true, true, true, true};

}  // namespace

std::optional<int64_t> head_axis(Point point) {
  if (info(point).heads == Heads::kNone) return std::nullopt;
  return position_axis(point) == 2 ? 1 : 2;
}

bool HookPoints::has(Site site) const {
  const bool in_block = static_cast<int>(site.point) < kBlockPoints;
  const bool layer_fits = in_block ? site.layer >= 0 && site.layer < n_layers : site.layer == -1;
  return layer_fits && points.test(static_cast<size_t>(site.point));
}

std::optional<int64_t> HookPoints::width(Point point) const {
  switch (info(point).width) {
    case Width::kOne:
      return 1;
    case Width::kDModel:
      return d_model;
    case Width::kDHead:
      return d_head;
    case Width::kDMlp:
      return d_mlp;
    case Width::kDVocab:
      return d_vocab;
    case Width::kExperts:
      return num_experts;
    case Width::kChosen:
      return experts_per_token;
    case Width::kKeys:
      return std::nullopt;
  }
  return std::nullopt;
}

std::optional<int64_t> HookPoints::heads(Point point) const {
  switch (info(point).heads) {
    case Heads::kNone:
      return std::nullopt;
    case Heads::kPerHead:
      return n_heads;
    case Heads::kPerGroup:
      return n_key_value_heads;
  }
  return std::nullopt;
}

std::string_view point_name(Point point) {
  return info(point).name;
}

Point parse_point(std::string_view name) {
  if (const auto point = find_point(name)) return *point;
  std::vector<std::string> known;
  for (const auto& point : kTable) known.emplace_back(point.name);
  throw HookError(concat("hook point ", excerpt(name), " does not exist; the nearest names are ",
                         nearest_names(name, known)));
}

std::string hook_name(Site site) {
  const auto name = point_name(site.point);
  return site.layer >= 0 ? concat(kBlocks, site.layer, ".", name) : std::string(name);
}

std::vector<std::string> HookPoints::names(const HookFlags& flags) const {
  std::vector<std::string> out;
  const auto add = [&](Site site) {
    const auto flag = info(site.point).flag;
    if (has(site) && (flag == nullptr || flags.*flag)) out.push_back(hook_name(site));
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
  const auto point = find_point(rest);
  if (!point || !has({*point, layer}))
    throw HookError(concat("hook point ", excerpt(name), " does not exist in this model of ", n_layers,
                           " layers; the nearest names are ", nearest_names(name, names(kEverything))));
  return {*point, layer};
}

}  // namespace introspect::hooks
