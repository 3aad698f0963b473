#include "introspect/analysis/lens.h"

#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "core/dense.h"

namespace introspect::analysis {
namespace {

using models::Model;

std::string hash_of(LensKind kind, const std::map<int64_t, Translator>& translators) {
  Sha256 hash;
  hash.update(to_string(kind));
  for (const auto& [layer, translator] : translators)
    for (const auto& tensor : {translator.W, translator.b}) {
      if (!tensor.defined()) continue;
      const auto values = tensor.to(torch::kCPU, torch::kFloat64).contiguous();
      hash.update(concat(";", layer, ":")).update(values.const_data_ptr(), values.nbytes());
    }
  return hash.hex();
}

void check_translator(int64_t layer, const Translator& translator, int64_t D) {
  const auto fits = [](const torch::Tensor& x, at::IntArrayRef sizes) {
    return (x.scalar_type() == torch::kFloat32 || x.scalar_type() == torch::kFloat64) && x.sizes() == sizes;
  };
  check_dense<ShapeError>(translator.W, "Lens: the matrix of layer ", layer);
  check<ShapeError>(fits(translator.W, {D, D}), "Lens: the matrix of layer ", layer,
                    " must be float32 or float64 [", D, ", ", D, "], got ", translator.W.scalar_type(), " ",
                    translator.W.sizes());
  const auto& b = translator.b;
  check<ShapeError>(!b.defined() || fits(b, {D}), "Lens: the bias of layer ", layer,
                    " must be float32 or float64 [", D, "], got ",
                    b.defined() ? b.sizes() : at::IntArrayRef{});
  check<std::invalid_argument>(
      at::isfinite(translator.W).all().item<bool>() && (!b.defined() || at::isfinite(b).all().item<bool>()),
      "Lens: the translator of layer ", layer, " must be finite");
}

}  // namespace

std::string to_string(LensKind kind) {
  return kind == LensKind::logit ? "logit" : kind == LensKind::tuned ? "tuned" : "jacobian";
}

LensKind parse_lens_kind(const std::string& name) {
  for (const auto kind : {LensKind::logit, LensKind::tuned, LensKind::jacobian})
    if (name == to_string(kind)) return kind;
  throw ConfigError("a lens must be logit, tuned or jacobian, got " + name);
}

Lens Lens::logit(const Model& model) {
  return {LensKind::logit,
          {model.cfg().model_name, model.hash(), {}, model.cfg().n_layers, model.cfg().d_model},
          {}};
}

Lens::Lens(LensKind kind, LensOrigin origin, std::map<int64_t, Translator> translators)
    : kind_(kind), origin_(std::move(origin)), translators_(std::move(translators)) {
  check<std::invalid_argument>((kind == LensKind::logit) == translators_.empty(),
                               kind == LensKind::logit ? "Lens: a logit lens has no translators"
                                                       : "Lens: at least one translator is needed, got none");
  const int64_t first = kind == LensKind::jacobian ? 0 : -1, last = origin_.n_layers - 2;
  for (const auto& [layer, translator] : translators_) {
    check<std::out_of_range>(layer >= first && layer <= last, "Lens: translators of a ", to_string(kind),
                             " lens of ", origin_.n_layers, " layers must be of ", first, " to ", last,
                             ", got ", layer);
    check_translator(layer, translator, origin_.d_model);
  }
  hash_ = hash_of(kind_, translators_);
}

std::vector<int64_t> Lens::layers() const {
  std::vector<int64_t> out;
  if (kind_ == LensKind::logit)
    for (int64_t layer = -1; layer < origin_.n_layers - 1; ++layer) out.push_back(layer);
  for (const auto& [layer, translator] : translators_) out.push_back(layer);
  out.push_back(origin_.n_layers - 1);
  return out;
}

void Lens::check_model(const Model& model) const {
  const auto& cfg = model.cfg();
  check<ShapeError>(cfg.d_model == origin_.d_model && cfg.n_layers == origin_.n_layers, "Lens: a ",
                    to_string(kind_), " lens of a model of ", origin_.n_layers, " layers of width ",
                    origin_.d_model, " must read such a model, got ", cfg.n_layers, " layers of width ",
                    cfg.d_model);
  if (kind_ == LensKind::logit || origin_.model_hash == model.hash()) return;
  const bool compares = !origin_.unembed_hash.empty();
  const bool is_same = compares && origin_.unembed_hash == unembedding_hash(model);
  if (origin_.model_hash.empty() && (is_same || !compares)) return;
  const auto whose = [](const std::string& name) {
    return name.empty() ? std::string() : " ('" + name + "')";
  };
  throw ConfigError(concat("Lens: a ", to_string(kind_), " lens must read the model that it was made for",
                           whose(origin_.model_name), ", got another checkpoint", whose(cfg.model_name),
                           !compares ? ""
                           : is_same ? " with the same unembedding"
                                     : " with another unembedding",
                           "; rebound(model) makes the lens one of that model, fine-tuned from it, say"));
}

Lens Lens::rebound(const Model& model) const {
  auto origin = origin_;
  check<ShapeError>(model.cfg().d_model == origin.d_model && model.cfg().n_layers == origin.n_layers,
                    "Lens: it can be rebound to a model of ", origin.n_layers, " layers of width ",
                    origin.d_model, ", got ", model.cfg().n_layers, " of width ", model.cfg().d_model);
  origin.model_name = model.cfg().model_name;
  origin.model_hash = model.hash();
  origin.unembed_hash = unembedding_hash(model);
  return {kind_, std::move(origin), translators_};
}

torch::Tensor Lens::translate(const torch::Tensor& resid, int64_t layer) const {
  check_dense<ShapeError>(resid, "Lens: residuals");
  check<ShapeError>(resid.is_floating_point() && resid.dim() > 0 && resid.size(-1) == origin_.d_model,
                    "Lens: residuals must be of a floating dtype and [..., ", origin_.d_model, "], got ",
                    resid.scalar_type(), " ", resid.sizes());
  check<std::out_of_range>(layer >= -1 && layer < origin_.n_layers,
                           "Lens: layers must be -1 (the embedding) to ", origin_.n_layers - 1, ", got ",
                           layer);
  const auto x = resid.scalar_type() == torch::kFloat64 ? resid : resid.to(torch::kFloat32);
  if (kind_ == LensKind::logit || layer == origin_.n_layers - 1) return x;
  const auto found = translators_.find(layer);
  check<std::out_of_range>(found != translators_.end(), "Lens: this ", to_string(kind_),
                           " lens does not read layer ", layer);
  const auto W = found->second.W.to(x.options());
  const auto b = found->second.b.defined() ? found->second.b.to(x.options()) : torch::Tensor{};
  const auto y = at::linear(x, W, b);
  return kind_ == LensKind::tuned ? x + y : y;
}

torch::Tensor Lens::logits(const Model& model, const torch::Tensor& resid, const std::vector<int64_t>& layers,
                           const torch::Tensor& vocab_ids) const {
  check_model(model);
  check<ShapeError>(
      resid.defined() && resid.dim() >= 2 && resid.size(-2) == static_cast<int64_t>(layers.size()),
      "Lens: residuals must be [..., ", layers.size(), " layers, ", origin_.d_model, "], got ",
      resid.defined() ? resid.sizes() : at::IntArrayRef{});
  std::vector<torch::Tensor> translated;
  for (size_t i = 0; i < layers.size(); ++i)
    translated.push_back(translate(resid.select(-2, static_cast<int64_t>(i)), layers[i]));
  return model.readout(at::stack(translated, -2), vocab_ids);
}

}  // namespace introspect::analysis
