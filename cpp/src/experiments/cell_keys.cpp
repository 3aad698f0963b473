#include "experiments/cell_keys.h"

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

// The first release that computed these numbers. Raise it when results may change: cells of another number are not
// found, and are made again. Releases that change no number leave it as it is, so that their stores stay valid.
constexpr auto kNumerics = "0.1.0";

/// The fields of an object without its braces.
std::string fields(const Json& object) {
  const auto text = object.dump();
  return text.substr(1, text.size() - 2);
}

}  // namespace

std::string dtype_name(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64:
      return "float64";
    case torch::kFloat32:
      return "float32";
    case torch::kBFloat16:
      return "bfloat16";
    case torch::kFloat16:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

std::string directions_hash(const Directions& directions) {
  Sha256 hash;
  for (const auto& [layer, direction] : directions) {
    const auto values = direction.contiguous();
    hash.update(concat(layer, ":")).update(values.const_data_ptr(), values.nbytes());
  }
  return hash.hex();
}

std::string ids_hash(const Ids& ids) {
  return sha256_hex(Json(ids).dump());
}

CellKeys::CellKeys(const models::Model& model, const Protocol& protocol, const Plan& plan, uint64_t seed)
    : protocol_(protocol), plan_(plan), seed_(seed) {
  for (const auto& scene : plan.scenes)
    identities_[&scene] = fields({{"version", kNumerics},
                                  {"model", model.hash()},
                                  {"dtype", dtype_name(model.dtype())},
                                  {"device", model.device().str()},
                                  {"before", scene.before},
                                  {"injected", scene.injected}});
}

std::string CellKeys::reading(const Scene& scene, const Ask& ask, const std::string& added) const {
  Json json{{"added", added.empty() ? "nothing" : added},
            {"after", ask.after},
            {"keeps_steering", ask.keeps_steering},
            {"read", {plan_.yes_id, plan_.no_id, ask.report_ids}}};
  // What was not asked for is left out, so that readings keep their places when more can be asked for.
  if (!(plan_.readouts == Readouts{}))
    json["readouts"] = {plan_.readouts.lens, plan_.readouts.attention, plan_.readouts.divergence,
                        plan_.readouts.top_k};
  if (plan_.yes_variants.size() + plan_.no_variants.size() > 2)
    json["variants"] = {plan_.yes_variants, plan_.no_variants};
  if (plan_.readouts.attention && !scene.is_whole()) json["spans"] = scene.spans;
  if (!ask.answer_ids.empty()) json["answers"] = ask.answer_ids;
  if (!plan_.directions.empty()) {
    json["directions"] = Json::object();
    for (const auto& [name, directions] : plan_.directions)
      json["directions"][name] = directions_hash(directions);
  }
  if (!plan_.continuations.empty()) json["continuations"] = plan_.continuations;
  if (ask.samples) {
    const auto& sampling = protocol_.sampling;
    json["sampling"] = {sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k};
    if (sampling.temperature > 0) json["seed"] = seed_;
  }
  return sha256_hex(concat("{", identities_.at(&scene), ",", fields(json), "}"));
}

std::string CellKeys::norms(const Scene& scene) const {
  Json json{{"read", "mean residual norms"}};
  if (!scene.is_whole()) json["spans"] = scene.spans;
  return sha256_hex(concat("{", identities_.at(&scene), ",", fields(json), "}"));
}

}  // namespace introspect::experiments
