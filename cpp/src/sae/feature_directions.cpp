#include <algorithm>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/sae/feature_statistics.h"

#include "core/on_device.h"
#include "sae/context_pass.h"

namespace introspect::sae {
namespace {

using hooks::Point;

void check_ids(const char* who, const Dictionary& dictionary, const torch::Tensor& ids) {
  check<ShapeError>(ids.defined() && ids.dim() == 1 && ids.scalar_type() == torch::kInt64, who,
                    ": feature ids must be int64 [n]");
  check<std::out_of_range>(
      ids.numel() == 0 || (ids.min().item<int64_t>() >= 0 && ids.max().item<int64_t>() < dictionary.d_sae()),
      who, ": feature ids must be 0 to ", dictionary.d_sae() - 1);
}

/// What is written at a site, as it arrives in the residual stream: [n, D].
torch::Tensor in_stream(const models::Model& model, const DictionarySite& site,
                        const torch::Tensor& directions) {
  const auto place = models::hook_points(model.cfg()).parse(site.hook_name);
  const auto linear = [&](const nn::Linear& through, bool is_normed) {
    check<ConfigError>(
        !is_normed, "logit_effects: ", site.hook_name,
        " goes through a norm before the residual stream: there is no linear way to the logits");
    const auto W = through.dense();
    return at::linear(directions, W.to(directions.options()));
  };
  switch (place.point) {
    case Point::kResidPre:
    case Point::kResidMid:
    case Point::kResidPost:
    case Point::kAttnOut:
    case Point::kMlpOut:
    case Point::kEmbed:
    case Point::kPosEmbed:
      return directions;
    case Point::kZ: {
      const auto block = model.block(place.layer);
      return linear(block->parts().attn.weights().O, block->parts().ln1_post.has_value());
    }
    case Point::kMlpPost: {
      const auto block = model.block(place.layer);
      return linear(block->parts().mlp.weights().out, block->parts().ln2_post.has_value());
    }
    default:
      throw ConfigError(concat("logit_effects: ", site.hook_name, " has no linear way to the logits"));
  }
}

}  // namespace

Neighbours decoder_neighbours(const Dictionary& dictionary, int64_t feature, int64_t k) {
  const at::NoGradGuard no_grad;
  check_ids("decoder_neighbours", dictionary, torch::tensor({feature}, torch::kInt64));
  const auto& W_FD = dictionary.weights().W_dec_FD;
  const auto wide = W_FD.scalar_type() == torch::kFloat64 ? W_FD : W_FD.to(torch::kFloat32);
  auto cosine_F = at::mv(wide, wide[feature]) / (wide.norm(2, 1) * wide[feature].norm()).clamp_min(1e-30);
  cosine_F[feature] = -2;
  const auto [similarity, ids] = cosine_F.topk(std::clamp<int64_t>(k, 0, dictionary.d_sae() - 1));
  const auto found = similarity.to(torch::kCPU, torch::kFloat64);
  return {ids.to(torch::kCPU), found, found, {}};
}

torch::Tensor logit_effects(const models::Model& model, const Dictionary& dictionary,
                            const torch::Tensor& ids, int64_t site) {
  constexpr auto who = "logit_effects";
  const at::NoGradGuard no_grad;
  check_ids(who, dictionary, ids);
  const auto outputs = Sites::outputs(who, model, dictionary).all();
  const auto n = static_cast<int64_t>(outputs.size());
  check<std::out_of_range>(site >= -n && site < n, who, ": the dictionary has ", n, " outputs, got site ",
                           site);
  const auto chosen = static_cast<size_t>(site < 0 ? site + n : site);
  int64_t first = 0;
  for (size_t i = 0; i < chosen; ++i) first += outputs[i].width;
  const int64_t width = n == 1 ? dictionary.d_out() : outputs[chosen].width;

  const bool is_double = model.dtype() == torch::kFloat64;
  const auto options =
      torch::TensorOptions(is_double ? torch::kFloat64 : torch::kFloat32).device(model.device());
  const auto at = on_device(ids, dictionary.device());
  auto rows = dictionary.weights().W_dec_FD.index_select(0, at).narrow(1, first, width).to(options);
  const auto& config = dictionary.config();
  if (config.rank_by_decoder_norm)
    rows = rows / dictionary.decoder_norms().index_select(0, at).to(options).unsqueeze(1);
  if (config.input_norm == InputNorm::scale) rows = rows / config.input_scale;
  auto v_nD = in_stream(model, outputs[chosen], rows);
  const auto& norm = model.ln_final();
  if (norm.kind == nn::NormKind::kLayer) v_nD = v_nD - v_nD.mean(-1, /*keepdim=*/true);
  return at::linear(v_nD * norm.weight.to(options), model.weights().W_U.dense(options.dtype().toScalarType()))
      .to(torch::kCPU);
}

}  // namespace introspect::sae
