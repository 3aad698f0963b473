#include "introspect/analysis/probe.h"

#include <array>
#include <cmath>
#include <stdexcept>
#include <utility>

#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

#include "core/json.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;

constexpr auto kFormat = "probe";
constexpr std::array kNames = {
    std::pair{ProbeKind::kLogistic, "logistic"}, std::pair{ProbeKind::kMassMean, "mass_mean"},
    std::pair{ProbeKind::kMassMeanCovariance, "mass_mean_covariance"}, std::pair{ProbeKind::kRidge, "ridge"},
    std::pair{ProbeKind::kDirection, "direction"}};

/// The sum of products in the units of the activations: weights / scale.
Tensor raw_weights(const Probe& probe) {
  return probe.weights_KD / probe.scale_D;
}

}  // namespace

ProbeKind parse_probe_kind(const std::string& name) {
  std::string known;
  for (const auto& [kind, own] : kNames) {
    if (name == own) return kind;
    known += concat(known.empty() ? "" : ", ", own);
  }
  throw std::invalid_argument(concat("probe: the kind must be one of ", known, ", got ", name));
}

std::string to_string(ProbeKind kind) {
  for (const auto& [own, name] : kNames)
    if (kind == own) return name;
  return "";
}

Tensor Probe::scores(const Tensor& x) const {
  check<ShapeError>(x.dim() >= 1 && x.size(-1) == width() && x.is_floating_point(),
                    "Probe::scores: activations must be [..., ", width(), "] of a float dtype, got ",
                    x.sizes());
  const auto wide = x.detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  check<std::invalid_argument>(wide.isfinite().all().item<bool>(),
                               "Probe::scores: the activations must be finite");
  // (x - mean) before the product: the mean of a residual stream is far larger than what differs in it.
  auto out = ((wide - mean_D) / scale_D).matmul(weights_KD.t()) + bias_K;
  return out.size(-1) == 1 ? out.squeeze(-1) : out;
}

Tensor Probe::probabilities(const Tensor& x) const {
  check<ConfigError>(kind == ProbeKind::kLogistic || kind == ProbeKind::kMassMeanCovariance,
                     "Probe::probabilities: the score of a probe of kind ", to_string(kind),
                     " is no log-odds; logistic and mass_mean_covariance have probabilities");
  const auto of = scores(x);
  if (weights_KD.size(0) > 1) return of.softmax(-1);
  return at::stack({(-of).sigmoid(), of.sigmoid()}, -1);
}

steering::ControlVector Probe::direction() const {
  check<ConfigError>(weights_KD.size(0) == 1, "Probe::direction: a probe of ", classes.size(),
                     " classes has a direction for each, not one: make a probe of two classes");
  check<ConfigError>(point == hooks::Point::kResidPost,
                     "Probe::direction: a control vector is added to hook_resid_post, and this probe reads ",
                     hooks::point_name(point));
  const auto raw_D = raw_weights(*this)[0];
  check<ConfigError>((raw_D != 0).any().item<bool>(),
                     "Probe::direction: the activations said nothing of the classes: all weights are zero");
  steering::VectorOrigin origin;
  origin.model_name = model_name;
  origin.model_hash = model_hash;
  origin.method = "probe_" + to_string(kind);
  origin.point = std::string(hooks::point_name(point));
  origin.read_position = activations::to_string(position);
  origin.last_layer_after_norm = last_layer_after_norm;
  origin.concept_name = name;
  return {model_type, {{layer, raw_D / raw_D.norm()}}, origin};
}

void Probe::validate() const {
  check<ShapeError>(weights_KD.defined() && weights_KD.dim() == 2 && weights_KD.numel() > 0,
                    "Probe: weights must be [K, D]");
  const int64_t K = weights_KD.size(0), D = width();
  check<ConfigError>(classes.size() >= 2, "Probe: there must be two classes or more, got ", classes.size());
  check<ShapeError>(K == (classes.size() == 2 ? 1 : static_cast<int64_t>(classes.size())),
                    "Probe: two classes have one row of weights and more have one each, got ", K,
                    " rows for ", classes.size(), " classes");
  check<ShapeError>(bias_K.defined() && bias_K.dim() == 1 && bias_K.size(0) == K, "Probe: the bias must be [",
                    K, "]");
  for (const auto* one : {&mean_D, &scale_D})
    check<ShapeError>(one->defined() && one->dim() == 1 && one->size(0) == D,
                      "Probe: mean and scale must be [", D, "]");
  for (const auto* one : {&weights_KD, &bias_K, &mean_D, &scale_D})
    check<std::invalid_argument>(one->scalar_type() == torch::kFloat64 && one->isfinite().all().item<bool>(),
                                 "Probe: weights, bias, mean and scale must be finite float64");
  check<std::invalid_argument>((scale_D > 0).all().item<bool>(), "Probe: scale must be above 0");

  check<std::invalid_argument>(!threshold || !std::isnan(*threshold),
                               "Probe: the threshold must be a number");
  check<std::out_of_range>(layer >= 0, "Probe: the layer must not be negative, got ", layer);
}

void Probe::save(const std::filesystem::path& path) const {
  validate();
  nlohmann::json position_json = {{"first", position.first}, {"is_span", position.is_span}};
  if (position.last) position_json["last"] = *position.last;
  nlohmann::json origin = {{"kind", to_string(kind)},
                           {"classes", classes},
                           {"name", name},
                           {"point", hooks::point_name(point)},
                           {"layer", layer},
                           {"position", position_json},
                           {"last_layer_after_norm", last_layer_after_norm},
                           {"model_name", model_name},
                           {"model_hash", model_hash},
                           {"model_type", model_type},
                           {"data_hash", data_hash},
                           {"n_texts", n_texts},
                           {"C", C}};
  if (threshold) origin["threshold"] = *threshold;
  io::save_safetensors(path,
                       {{"weights", weights_KD}, {"bias", bias_K}, {"mean", mean_D}, {"scale", scale_D}},
                       {{"format", kFormat}, {"origin", origin.dump()}});
}

Probe Probe::load(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto& metadata = file->metadata();
  const auto value = [&](const std::string& key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  check<IoError>(value("format") == kFormat, "Probe::load: ", path.string(),
                 ": the metadata 'format' must be '", kFormat, "', got '", value("format"), "'");
  const auto who = concat("Probe::load: ", path.string(), ": origin");
  const auto json = parse_json<IoError>(value("origin"), who);
  const JsonField<IoError> field(json, who + ": ");
  Probe out;
  for (const auto& [name, tensor] : {std::pair{"weights", &out.weights_KD}, std::pair{"bias", &out.bias_K},
                                     std::pair{"mean", &out.mean_D}, std::pair{"scale", &out.scale_D}}) {
    check<IoError>(file->has(name), "Probe::load: ", path.string(), ": the tensor '", name,
                   "' must be there");
    *tensor = file->read(name, torch::kFloat64);
  }
  const auto position = field.at("position");
  out.position.first = position.at("first").integer();
  out.position.is_span = position.at("is_span").boolean();
  if (position.has("last")) out.position.last = position.at("last").integer();
  const auto classes = field.at("classes");
  for (size_t i = 0; i < classes.list(); ++i) out.classes.push_back(classes.at(i).text());
  out.name = field.at("name").text();
  out.layer = field.at("layer").integer();
  out.last_layer_after_norm = field.at("last_layer_after_norm").boolean();
  out.model_name = field.at("model_name").text();
  out.model_hash = field.at("model_hash").text();
  out.model_type = field.at("model_type").text();
  out.data_hash = field.at("data_hash").text();
  out.n_texts = field.at("n_texts").integer();
  out.C = field.at("C").number();
  if (field.has("threshold")) out.threshold = field.at("threshold").number();
  try {
    out.kind = parse_probe_kind(field.at("kind").text());
    out.point = hooks::parse_point(field.at("point").text());
    out.validate();
  } catch (const IoError&) {
    throw;
  } catch (const std::exception& error) {
    throw IoError(concat("Probe::load: ", path.string(), ": ", error.what()));
  }
  return out;
}

Probe probe_of_direction(const Tensor& direction_D, int64_t layer, const std::string& name,
                         hooks::Point point) {
  check<ShapeError>(direction_D.dim() == 1 && direction_D.is_floating_point(),
                    "probe_of_direction: the direction must be [D] of a float dtype, got ",
                    direction_D.sizes());
  const auto v_D = direction_D.detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  check<std::invalid_argument>(v_D.isfinite().all().item<bool>() && (v_D != 0).any().item<bool>(),
                               "probe_of_direction: the direction must be finite and not zero");
  Probe out;
  out.kind = ProbeKind::kDirection;
  out.weights_KD = (v_D / v_D.norm()).unsqueeze(0);
  out.bias_K = torch::zeros({1}, torch::kFloat64);
  out.mean_D = torch::zeros_like(v_D);
  out.scale_D = torch::ones_like(v_D);
  out.classes = {"low", "high"};
  out.name = name;
  out.point = point;
  out.layer = layer;
  out.validate();
  return out;
}

void check_model(const std::string& who, const Probe& probe, const models::Model& model) {
  check<ConfigError>(probe.model_hash.empty() || probe.model_hash == model.hash(), who, ": the probe",
                     probe.name.empty() ? "" : " '" + probe.name + "'", " must be of this model, ",
                     model.cfg().model_name, " (hash ", model.hash().substr(0, 12), "), got one of ",
                     probe.model_name, " (hash ", probe.model_hash.substr(0, 12), ")");
  check<std::out_of_range>(probe.layer < model.cfg().n_layers, who, ": the probe's layer must be 0 to ",
                           model.cfg().n_layers - 1, ", got ", probe.layer);
}

}  // namespace introspect::analysis
