#include "experiments/cell_keys.h"

#include <algorithm>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/weights_held.h"

#include "experiments/readouts/library.h"
#include "models/numerics.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

/// The fields of an object without its braces.
std::string fields(const Json& object) {
  const auto text = object.dump();
  return text.substr(1, text.size() - 2);
}

}  // namespace

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

// Stores without a way of holding are dense.
CellKeys::CellKeys(const models::Model& model, const Design& design) : design_(design) {
  for (const auto& scene : design.scenes)
    identities_[&scene] = fields({{"version", models::kNumericsVersion},
                                  {"model", model.hash()},
                                  {"dtype", models::precision_name(model)},
                                  {"device", models::device_kind(model)},
                                  {"before", scene.before},
                                  {"injected", scene.injected}});
}

/// What was not asked for is left out, so that readings keep their keys when more can be asked for.
Json CellKeys::readout_fields(const Scene& scene, const Ask& ask) const {
  // As stores have hashed them; others come after these by name.
  static const std::vector<std::string> kFirst = {
      "read", "readouts", "variants", "spans", "answers", "directions", "continuations", "sampling", "seed"};
  const auto& reads = design_.reads(ask);
  std::map<std::string, Json> found;
  std::map<std::string, Json> first_readouts_asked;
  for (const auto* one : reads.active) {
    const auto& [readout, parameter, prepared] = *one;
    if (is_first_readout(
            readout->name))  // a key stands for what the parameter only names: a lens' hash for its path
      first_readouts_asked[readout->name] = prepared.key.empty() ? json_of(parameter) : json_of(prepared.key);
    else if (prepared.key.empty() || !is_library_readout(readout->name))
      found["readout " + readout->name] = {readout->version, json_of(parameter), json_of(prepared.key)};
    else
      for (const auto& [name, value] : prepared.key) found[name] = json_of(value);
  }
  if (!first_readouts_asked.empty())
    for (const auto& [name, off] : first_readouts()) {
      const auto asked = first_readouts_asked.find(name);
      found["readouts"].push_back(asked == first_readouts_asked.end() ? json_of(off) : asked->second);
    }
  const auto looks_at_spans = [](const Need& need) {
    return need.at_injected || need.read.what == graph::Read::What::attention;
  };
  const auto &needs = reads.needs.steered(), &unsteered = reads.needs.unsteered();
  if (!scene.is_whole() && (std::any_of(needs.begin(), needs.end(), looks_at_spans) ||
                            std::any_of(unsteered.begin(), unsteered.end(), looks_at_spans)))
    found["spans"] = scene.spans;
  Json out = Json::object();
  for (const auto& name : kFirst)
    if (const auto one = found.extract(name)) out[name] = one.mapped();
  for (const auto& [name, value] : found) out[name] = value;
  return out;
}

std::string CellKeys::reading(const Scene& scene, const Ask& ask, const std::string& added) const {
  Json json{{"added", added.empty() ? "nothing" : added},
            {"after", ask.after},
            {"keeps_steering", ask.keeps_steering},
            {"read", {design_.yes_id, design_.no_id, Json::array()}}};
  const auto of_readouts = readout_fields(scene, ask);
  for (const auto& [name, value] : of_readouts.items())
    if (name == "read")
      json["read"][2] = value;
    else
      json[name] = value;
  return sha256_hex(concat("{", identities_.at(&scene), ",", fields(json), "}"));
}

std::string CellKeys::norms(const Scene& scene) const {
  Json json{{"read", "median residual norms"}};
  if (!scene.is_whole()) json["spans"] = scene.spans;
  return sha256_hex(concat("{", identities_.at(&scene), ",", fields(json), "}"));
}

}  // namespace introspect::experiments
