#include "circuits/feature_layers.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include <ATen/ATen.h>

#include "circuits/norms.h"
#include "introspect/core/check.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/ops/sparse_rows.h"

namespace introspect::circuits {

namespace {

using sae::Dictionary;

std::string point_in(const std::string& hook_name) {
  const auto dot = hook_name.find('.', std::string("blocks.").size());
  return dot == std::string::npos ? hook_name : hook_name.substr(dot + 1);
}

TranscoderInput input_of(const std::string& hook_name, const std::string& who) {
  const auto point = point_in(hook_name);
  if (point == "hook_mlp_in" || point == "hook_resid_mid") return TranscoderInput::residual;
  if (point == "ln2.hook_normalized") return TranscoderInput::normalized;
  if (point == "mlp.hook_in") return TranscoderInput::mlp;
  throw ConfigError(concat("attribute: ", who,
                           " must read hook_mlp_in, hook_resid_mid, ln2.hook_normalized or ",
                           "mlp.hook_in (or be told which with input=), got '", hook_name, "'"));
}

void check_fits(const models::Model& model, const sae::DictionaryOrigin& origin, int64_t layer, int64_t d_in,
                int64_t d_out, const std::string& who) {
  const int64_t D = model.cfg().d_model;
  check<ShapeError>(d_in == D && d_out == D, "attribute: ", who, " must read and write vectors of ", D,
                    ", got ", d_in, " and ", d_out);
  check<ConfigError>(origin.model_hash.empty() || origin.model_hash == model.hash(), "attribute: ", who,
                     " must be of this model, got one of '", origin.model_name, "' with other weights");
  for (const auto& site : origin.outputs) {
    if (site.hook_name.empty()) continue;
    check<ConfigError>(
        point_in(site.hook_name) == "hook_mlp_out" || point_in(site.hook_name) == "ln2_post.hook_normalized",
        "attribute: ", who, " must write hook_mlp_out, got '", site.hook_name, "'");
    const auto prefix = "blocks." + std::to_string(layer) + ".";
    check<ConfigError>(origin.outputs.size() > 1 || site.hook_name.rfind(prefix, 0) == 0, "attribute: ", who,
                       " must be of layer ", layer, ", got '", site.hook_name, "'");
  }
}

/// Where an SAE stands in for a vector of the model: site and layer.
std::pair<FeatureSite, int64_t> split_of(const FrozenModel& frozen, const Dictionary& sae) {
  const auto& model = frozen.model();
  const auto& origin = sae.origin();
  const auto name = origin.inputs.size() == 1 ? origin.inputs[0].hook_name : std::string();
  const auto who = concat("the SAE of '", name, "'");
  const auto point = name.empty() ? std::string() : point_in(name);
  check<ConfigError>(point == "hook_attn_out" || point == "hook_resid_post" || point == "hook_resid_pre",
                     "attribute: an SAE must be of hook_attn_out, hook_resid_post or hook_resid_pre, got '",
                     name, "'; other points are not where a graph can be cut");
  for (const auto& site : origin.outputs)
    check<ConfigError>(site.hook_name.empty() || site.hook_name == name, "attribute: ", who,
                       " must write where it reads, got '", site.hook_name,
                       "'; a transcoder stands among transcoders");
  const int64_t D = model.cfg().d_model;
  check<ShapeError>(sae.d_in() == D && sae.d_out() == D, "attribute: ", who, " must be of vectors of ", D,
                    ", got ", sae.d_in(), " and ", sae.d_out());
  check<ConfigError>(!sae.weights().W_skip_DD.defined(), "attribute: ", who, " must have no skip");
  check<ConfigError>(origin.model_hash.empty() || origin.model_hash == model.hash(), "attribute: ", who,
                     " must be of this model, got one of '", origin.model_name, "' with other weights");
  const auto number = name.substr(7, name.find('.', 7) - 7);  // after "blocks."
  check<ConfigError>(name.rfind("blocks.", 0) == 0 && !number.empty() && number.size() < 6 &&
                         number.find_first_not_of("0123456789") == std::string::npos,
                     "attribute: an SAE's hook name must begin with its block, blocks.<layer>., got '", name,
                     "'");
  const int64_t layer = std::stoll(number) - (point == "hook_resid_pre" ? 1 : 0);
  check<std::out_of_range>(layer >= 0 && layer < frozen.n_layers(), "attribute: ", who,
                           " must be of a vector after block 0 to ", frozen.n_layers() - 1);
  return {point == "hook_attn_out" ? FeatureSite::attention : FeatureSite::residual, layer};
}

/// A dictionary in the plainest form of one function: no scale of inputs, no rank by norm.
Dictionary plain(const Dictionary& given, const std::string& who) {
  const auto norm = given.config().input_norm;
  check<ConfigError>(norm == sae::InputNorm::none || norm == sae::InputNorm::scale, "attribute: ", who,
                     " must not scale each row of its inputs, which is not linear, got ",
                     sae::to_string(norm));
  check<ConfigError>(given.config().architecture != sae::Architecture::matching_pursuit, "attribute: ", who,
                     " must be linear where it is active, got matching pursuit");
  auto out = given.fold_input_scale();
  return out.config().rank_by_decoder_norm ? out.fold_decoder_norm() : out;
}

/// W_enc and the constant of pre-activations of the stream's part of an input.
void set_encoder(FeatureLayer& out, const Dictionary& dictionary, const torch::Tensor& input_bias_D,
                 torch::ScalarType dtype) {
  const auto& w = dictionary.weights();
  out.W_enc_FD = w.W_enc_FD.to(dtype);
  auto constant = at::zeros({out.W_enc_FD.size(0)}, out.W_enc_FD.options());
  if (input_bias_D.defined()) constant = constant + at::mv(out.W_enc_FD, input_bias_D);
  if (dictionary.config().subtract_b_dec && w.b_dec_D.defined())
    constant = constant - at::mv(out.W_enc_FD, w.b_dec_D.to(dtype));
  if (dictionary.config().architecture == sae::Architecture::gated) {
    const auto scale_F = w.r_mag_F.to(dtype).exp();
    out.W_enc_FD = out.W_enc_FD * scale_F.unsqueeze(1);
    constant = constant * scale_F + w.b_mag_F.to(dtype);
  } else if (w.b_enc_F.defined()) {
    constant = constant + w.b_enc_F.to(dtype);
  }
  out.constant_F = constant;
}

void set_activations(FeatureLayer& out, const sae::SparseFeatures& f, bool mask_first,
                     torch::ScalarType dtype) {
  const int64_t n_masked = mask_first ? f.offsets[1].item<int64_t>() : 0;
  out.ids = f.indices.slice(0, n_masked);
  out.activations = f.values.slice(0, n_masked).to(dtype);
  out.offsets = (f.offsets - n_masked).clamp_min(0);
}

/// What the features of a layer write to one it writes to, [T, D].
torch::Tensor written_TD(const FeatureLayer& from, const torch::Tensor& W_dec_FD) {
  return ops::gather_decode({from.offsets, from.ids, from.activations}, W_dec_FD);
}

int64_t depth(const FeatureLayer& layer) {
  return 3 * layer.layer + static_cast<int64_t>(layer.site);
}

/// The SAEs' features, and what they leave out of the vectors that they stand in for.
void read_splits(FeatureLayers& out, const FrozenModel& frozen, const std::vector<Dictionary>& saes,
                 bool mask_first) {
  const auto dtype = frozen.embedded_TD().scalar_type();
  std::vector<FeatureLayer> found;
  for (const auto& given : saes) {
    FeatureLayer one;
    std::tie(one.site, one.layer) = split_of(frozen, given);
    const auto who = concat("the SAE of '", given.origin().inputs[0].hook_name, "'");
    for (const auto& other : found)
      check<ConfigError>(depth(other) != depth(one), "attribute: two SAEs are of one vector, ", who);
    const auto sae = plain(given, who).to(dtype);
    const auto x_TD = one.site == FeatureSite::attention ? frozen.attention_out_TD(one.layer)
                                                         : frozen.stream_after_TD(one.layer);
    set_encoder(one, sae, {}, dtype);
    set_activations(one, sae.encode_sparse(x_TD), mask_first, dtype);
    one.writes.emplace_back(one.layer, sae.weights().W_dec_FD);
    found.push_back(std::move(one));
    Split split{found.back().layer, found.back().site, x_TD.clone(), sae.weights().b_dec_D};
    if (split.bias_D.defined()) split.error_TD -= split.bias_D;
    split.error_TD -= written_TD(found.back(), sae.weights().W_dec_FD);
    out.splits.push_back(std::move(split));
  }
  const auto before = [](const auto& a, const auto& b) {
    return std::pair(a.layer, a.site) < std::pair(b.layer, b.site);
  };
  std::sort(out.splits.begin(), out.splits.end(), before);
  std::sort(found.begin(), found.end(), before);
  for (size_t i = 0; i < found.size(); ++i) {
    found[i].error_row = static_cast<int64_t>(out.error_TD.size() + i);
    out.layers.push_back(std::move(found[i]));
  }
  std::stable_sort(out.layers.begin(), out.layers.end(), before);
}

}  // namespace

const Split* FeatureLayers::split(FeatureSite site, int64_t layer) const {
  for (const auto& one : splits)
    if (one.site == site && one.layer == layer) return &one;
  return nullptr;
}

FeatureLayers read_features(const FrozenModel& frozen, const Transcoders& transcoders, bool mask_first,
                            bool may_be_none) {
  const auto& model = frozen.model();
  const int64_t L = frozen.n_layers();
  const auto dtype = frozen.embedded_TD().scalar_type();
  check<ConfigError>(transcoders.layers.empty() || !transcoders.cross_layer,
                     "attribute: transcoders of layers or a cross-layer transcoder are needed, got both");
  check<ConfigError>(
      may_be_none || !transcoders.layers.empty() || transcoders.cross_layer || !transcoders.saes.empty(),
      "attribute: transcoders of layers, a cross-layer transcoder or SAEs are needed, got none");
  FeatureLayers out;
  out.error_TD.resize(static_cast<size_t>(L));
  out.bias_D.resize(static_cast<size_t>(L));
  out.skip_DD.resize(static_cast<size_t>(L));

  const auto read = [&](int64_t layer, const Dictionary& dictionary, const std::string& hook_name,
                        const std::string& who) {
    check<std::out_of_range>(layer >= 0 && layer < L, "attribute: layers of transcoders must be 0 to ", L - 1,
                             ", got ", layer);
    const auto input = transcoders.input ? *transcoders.input : input_of(hook_name, who);
    check<ConfigError>(out.layers.empty() || input == out.input,
                       "attribute: all transcoders must read at one point");
    out.input = input;
    FeatureLayer one;
    one.layer = one.error_row = layer;
    set_encoder(one, dictionary, frozen.mlp_input_bias_D(layer, input), dtype);
    const auto x_TD = frozen.mlp_input_TD(layer, input);
    // Made anew, a dictionary has all its weights looked through.
    const bool fits = dictionary.weights().W_enc_FD.scalar_type() == dtype;
    const auto& encoder = fits ? dictionary : dictionary.to(dtype);
    set_activations(one, encoder.encode_sparse(x_TD), mask_first, dtype);
    return one;
  };

  for (const auto& [layer, given] : transcoders.layers) {
    const auto who = concat("the transcoder of layer ", layer);
    check_fits(model, given.origin(), layer, given.d_in(), given.d_out(), who);
    const auto dictionary = plain(given, who);
    const auto& sites = given.origin().inputs;
    auto one = read(layer, dictionary, sites.empty() ? "" : sites[0].hook_name, who);
    const auto& w = dictionary.weights();
    one.writes.emplace_back(layer, w.W_dec_FD.to(dtype));
    if (w.b_dec_D.defined()) out.bias_D[size_t(layer)] = w.b_dec_D.to(dtype);
    if (w.W_skip_DD.defined()) out.skip_DD[size_t(layer)] = w.W_skip_DD.to(dtype);
    out.layers.push_back(std::move(one));
  }
  if (transcoders.cross_layer) {
    const auto& clt = *transcoders.cross_layer;
    check<ConfigError>(clt.n_layers() == L, "attribute: the cross-layer transcoder must be of ", L,
                       " layers, got ", clt.n_layers());
    for (int64_t layer = 0; layer < L; ++layer) {
      const auto who = concat("layer ", layer, " of the cross-layer transcoder");
      check_fits(model, clt.origin(), layer, clt.d_in(), clt.d_out(), who);
      const auto& sites = clt.origin().inputs;
      const auto encoder = plain(clt.layers()[size_t(layer)], who);
      auto one = read(layer, encoder, sites.empty() ? "" : sites[size_t(layer)].hook_name, who);
      const auto W_dec = encoder.weights().W_dec_FD.to(dtype).unflatten(1, {L - layer, clt.d_out()});
      for (int64_t to = layer; to < L; ++to) one.writes.emplace_back(to, W_dec.select(1, to - layer));
      if (clt.b_dec().defined()) out.bias_D[size_t(layer)] = clt.b_dec()[layer].to(dtype);
      if (clt.W_skip().defined()) out.skip_DD[size_t(layer)] = clt.W_skip()[layer].to(dtype);
      out.layers.push_back(std::move(one));
    }
  }

  for (int64_t layer = 0; layer < L; ++layer) {
    auto& error = out.error_TD[size_t(layer)];
    error = frozen.mlp_out_TD(layer).clone();
    const auto& skip = out.skip_DD[size_t(layer)];
    if (skip.defined()) {
      const auto x_TD = frozen.mlp_input_TD(layer, out.input);
      error -= at::linear(x_TD, skip);
      // The part of the skip that reads the norm's bias is a constant.
      const auto read = frozen.mlp_input_bias_D(layer, out.input);
      if (read.defined()) {
        auto& bias = out.bias_D[size_t(layer)];
        const auto more = at::mv(skip, read);
        error += more;
        bias = bias.defined() ? bias + more : more;
      }
    }
    if (out.bias_D[size_t(layer)].defined()) error -= out.bias_D[size_t(layer)];
  }
  for (const auto& from : out.layers)
    for (const auto& [to, W_dec_FD] : from.writes) out.error_TD[size_t(to)] -= written_TD(from, W_dec_FD);
  read_splits(out, frozen, transcoders.saes, mask_first);
  return out;
}

}  // namespace introspect::circuits
