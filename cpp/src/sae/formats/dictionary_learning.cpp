// dictionary_learning: ae.pt and config.json of a trainer; encoder.weight [d_sae, d], decoder.weight [d, d_sae], or W_enc
// [d, d_sae], W_dec [d_sae, d]. Source: saprmarks/dictionary_learning@60ec6bf dictionary.py and trainers/*.py.
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/formats/format.h"

namespace introspect::sae::formats {
namespace {

bool is_dictionary_learning(const Found& found) {
  const auto& t = found.tensors;
  return (t.has("encoder.weight") && t.has("decoder.weight")) || (t.has("W_enc") && t.has("threshold")) ||
         t.has("ae") || t.has("state_dict");
}

nlohmann::json trainer_of(const Found& found) {
  const auto config = found.json("config.json");
  return config.is_object() && config.contains("trainer") && config["trainer"].is_object()
             ? config["trainer"]
             : nlohmann::json::object();
}

/// The class by what the file holds, where no config.json names it.
std::string class_of(const Tensors& t, const nlohmann::json& trainer) {
  if (trainer.contains("dict_class"))
    return JsonField<IoError>(trainer, "config.json: ").at("dict_class").text();
  if (t.has("W_enc")) return t.has("k") ? "MatryoshkaBatchTopKSAE" : "JumpReluAutoEncoder";
  if (t.has("r_mag")) return "GatedAutoEncoder";
  if (t.has("decoder.bias")) return "AutoEncoderNew";
  if (t.has("bias")) return "AutoEncoder";
  check<ConfigError>(
      !t.has("k"),
      "AutoEncoderTopK and BatchTopKSAE hold the same tensors: its config.json must say which it is");
  throw ConfigError("no class of dictionary_learning holds these tensors");
}

std::string hook_of(const nlohmann::json& trainer) {
  const JsonField<IoError> field(trainer, "config.json: trainer.");
  if (!field.has("layer")) return {};
  const auto layer = field.at("layer").integer();
  const auto submodule = field.has("submodule_name") && !field.at("submodule_name").is_null()
                             ? field.at("submodule_name").text()
                             : std::string("resid_post");
  for (const auto& [begin, point] : {std::pair{"resid_post", "hook_resid_post"},
                                     {"resid_pre", "hook_resid_pre"},
                                     {"mlp_out", "hook_mlp_out"},
                                     {"attention_out", "hook_attn_out"},
                                     {"attn_out", "hook_attn_out"}})
    if (submodule.starts_with(begin)) return block_hook(layer, point);
  return {};
}

void take_linear(Tensors& t, DictionaryWeights& w) {
  w.W_enc_FD = t.take("encoder.weight");
  w.W_dec_FD = t.take("decoder.weight").t();
}

Parts read_dictionary_learning(Found& found) {
  auto& t = found.tensors;
  if (!t.descend("ae")) t.descend("state_dict");  // {step, ae, optimizer, ..} of a backup
  const auto trainer = trainer_of(found);
  const auto name = class_of(t, trainer);
  Parts parts;
  auto& [config, w, origin, has_relu] = parts;
  const auto take_bias = [&](const char* encoder) { w.b_enc_F = t.take(encoder); };
  if (name == "AutoEncoder" || name == "AutoEncoderNew") {
    take_linear(t, w);
    take_bias("encoder.bias");
    config.subtract_b_dec = name == "AutoEncoder";
    w.b_dec_D = t.take(config.subtract_b_dec ? "bias" : "decoder.bias");
  } else if (name == "GatedAutoEncoder") {
    config.architecture = Architecture::gated;
    take_linear(t, w);
    w.b_dec_D = t.take("decoder_bias");
    w.r_mag_F = t.take("r_mag");
    w.b_gate_F = t.take("gate_bias");
    w.b_mag_F = t.take("mag_bias");
  } else if (name == "AutoEncoderTopK") {
    config.architecture = Architecture::topk;
    take_linear(t, w);
    take_bias("encoder.bias");
    w.b_dec_D = t.take("b_dec");
    auto k = t.take_integer("k");
    if (!k && trainer.contains("k")) k = JsonField<IoError>(trainer, "config.json: ").at("k").integer();
    if (!k) k = found.options.k;
    check<ConfigError>(k.has_value(), "must say k");
    config.k = static_cast<double>(*k);
    t.ignore("threshold");  // of another way of inference, which AutoEncoderTopK does not use by default
  } else if (name == "BatchTopKSAE") {
    config.architecture = Architecture::jumprelu;
    take_linear(t, w);
    take_bias("encoder.bias");
    w.b_dec_D = t.take("b_dec");
    w.threshold_F = t.take("threshold");
    t.ignore("k");
  } else if (name == "MatryoshkaBatchTopKSAE" || name == "JumpReluAutoEncoder") {
    config.architecture = Architecture::jumprelu;
    config.subtract_b_dec = name == "MatryoshkaBatchTopKSAE";
    w.W_enc_FD = t.take("W_enc").t();
    w.W_dec_FD = t.take("W_dec");
    take_bias("b_enc");
    w.b_dec_D = t.take("b_dec");
    w.threshold_F = t.take("threshold");
    t.ignore("k");
    t.ignore("group_sizes");
  } else {
    throw ConfigError("the class " + excerpt(name) +
                      " is not known: AutoEncoder, AutoEncoderNew, GatedAutoEncoder, " +
                      "AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE and JumpReluAutoEncoder are");
  }
  const auto all = found.json("config.json");
  if (all.is_object()) origin.notes = all.dump();
  if (trainer.contains("lm_name"))
    origin.model_name = JsonField<IoError>(trainer, "config.json: ").at("lm_name").text();
  if (all.is_object() && all.contains("buffer") && all["buffer"].is_object() &&
      all["buffer"].contains("ctx_len"))
    origin.context_size = JsonField<IoError>(all["buffer"], "config.json: ").at("ctx_len").integer();
  set_site(origin, hook_of(trainer), w.W_enc_FD.size(-1));
  return parts;
}

}  // namespace

const Format kDictionaryLearning = {"dictionary_learning", "ae.pt and config.json", is_dictionary_learning,
                                    read_dictionary_learning};

}  // namespace introspect::sae::formats
