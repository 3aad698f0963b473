#include "models/rope_config.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "introspect/core/check.h"

namespace introspect::models {

namespace {

using nlohmann::json;

/// One set of RoPE parameters, and what stands for a parameter that it leaves out.
struct Rope {
  json parameters = json::object();
  std::string place;  // "'rope_scaling'"

  Field field() const { return {parameters, kConfigJson, place}; }
  bool has(const char* key) const { return parameters.contains(key); }
  double number(const char* key, double otherwise) const {
    return has(key) ? field().at(key).number() : otherwise;
  }
};

Rope rope_of(const json& config, const char* key) {
  Rope rope{config.at(key), concat("'", key, "'")};
  rope.field().object();
  return rope;
}

/// rope_scaling, else rope_parameters, else the family's: transformers 5 gives the older name precedence.
Rope flat_rope(const json& config, const Fields& fields) {
  for (const char* key : {"rope_scaling", "rope_parameters"})
    if (const auto found = config.find(key); found != config.end() && !found->is_null()) {
      auto rope = rope_of(config, key);
      if (!rope.parameters.empty()) return rope;
    }
  Rope rope{json::object(), "'rope_parameters'"};
  if (fields.has("rope_parameters")) rope.parameters = fields.otherwise("rope_parameters");
  return rope;
}

/// Gemma 3 and OLMo 3 have a set for each type of layer; rope_scaling is about the layers without a window.
Rope rope_of_layers(const json& config, const char* type) {
  Rope rope{json::object(), "'rope_parameters'"};
  if (const auto found = config.find("rope_parameters"); found != config.end() && !found->is_null()) {
    const auto all = rope_of(config, "rope_parameters");
    rope.place = concat("'rope_parameters.", type, "'");
    if (all.has(type) && !all.parameters.at(type).is_null()) rope.parameters = all.parameters.at(type);
    rope.field().object();
  }
  if (const auto found = config.find("rope_scaling");
      std::string_view(type) == "full_attention" && found != config.end() && !found->is_null()) {
    rope.parameters.update(rope_of(config, "rope_scaling").parameters);
    rope.place = "'rope_scaling'";
  }
  return rope;
}

std::vector<double> numbers(const Field& field) {
  std::vector<double> out;
  for (size_t i = 0; i < field.list(); ++i) out.push_back(field.at(i).number());
  return out;
}

/// What cosines and sines are multiplied by where no number is given, arXiv:2309.00071 and the mscale of DeepSeek's.
double yarn_attention_factor(const Rope& rope, double factor) {
  const auto of = [&](double mscale) { return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1; };
  const double mscale = rope.number("mscale", 0), all = rope.number("mscale_all_dim", 0);
  return mscale != 0 && all != 0 ? of(mscale) / of(all) : of(1);
}

/// Likewise of longrope, arXiv:2402.13753.
double longrope_attention_factor(double factor, double original) {
  return factor <= 1 ? 1.0 : std::sqrt(1 + std::log(factor) / std::log(original));
}

ops::RotaryScaling scaling_of(const Rope& rope, const Fields& config, const json& given, bool by_layer) {
  ops::RotaryScaling s;
  const char* key = rope.has("rope_type") ? "rope_type" : "type";
  auto type = rope.has(key) ? rope.field().at(key).text() : "default";
  const char* const original = "original_max_position_embeddings";
  if (config.has(original) && (type == "su" || type == "yarn")) type = "longrope";  // Phi-3's older words
  if (type == "default") return s;
  rope.field().require(
      type == "linear" || type == "llama3" || type == "yarn" || type == "longrope" || type == "dynamic",
      "must be of the type default, linear, llama3, yarn, longrope or dynamic, got ", excerpt(type));
  const auto number = [&](const char* name) { return rope.field().at(name).number(); };
  const auto given_number = [&](const char* name) {
    return rope.has(name) && !rope.parameters.at(name).is_null();
  };
  const auto n_positions = static_cast<double>(config.size("max_position_embeddings"));
  s.type = type;
  if (type == "linear" || type == "llama3" || type == "dynamic") s.factor = number("factor");
  if (type == "linear") return s;
  // One beside the parameters comes first where a model has one set of them.
  if ((given.contains(original) || config.has(original)) && !by_layer)
    s.original_max_position =
        config.has(original) ? config.at(original).number() : field_of(given, original).number();
  else
    s.original_max_position = rope.has(original) ? number(original) : n_positions;
  if (type == "dynamic") s.original_max_position = n_positions;
  if (type == "llama3") {
    s.low_freq_factor = number("low_freq_factor");
    s.high_freq_factor = number("high_freq_factor");
  }
  if (type != "yarn" && type != "longrope") return s;
  rope.field().require(s.original_max_position > 1,
                       "must have an original_max_position_embeddings above 1, got ",
                       s.original_max_position);
  s.factor = given_number("factor") ? number("factor") : n_positions / s.original_max_position;
  if (type == "yarn") {
    if (given_number("beta_fast")) s.beta_fast = number("beta_fast");
    if (given_number("beta_slow")) s.beta_slow = number("beta_slow");
    if (rope.has("truncate") && !by_layer)
      s.truncate = rope.field().at("truncate").boolean();  // as transformers does
    s.attention_factor = yarn_attention_factor(rope, s.factor);
  } else {
    s.short_factor = numbers(rope.field().at("short_factor"));
    s.long_factor = numbers(rope.field().at("long_factor"));
    s.attention_factor = longrope_attention_factor(s.factor, s.original_max_position);
  }
  if (given_number("attention_factor")) s.attention_factor = number("attention_factor");
  return s;
}

}  // namespace

void read_rotary(const json& given, const Fields& config, const Family& family, Config& cfg) {
  const bool by_layer = config.has("rope_local_base_freq") || family.layers_have_own_ropes;
  const auto rope = by_layer ? rope_of_layers(given, "full_attention") : flat_rope(given, config);
  if (config.has("layer_types") && !by_layer)
    for (const char* type : {"full_attention", "sliding_attention"})
      rope.field().require(!rope.has(type), "must be one set of parameters in this family, got one for ",
                           type);
  const auto base = [&](const Rope& of, const char* key) {
    return of.has("rope_theta") ? of.field().at("rope_theta").number() : config.at(key).number();
  };
  cfg.rotary_base = base(rope, config.name({"rope_theta", "rotary_emb_base"}));
  cfg.rotary_scaling = scaling_of(rope, config, given, by_layer);
  if (by_layer) {
    const auto local = rope_of_layers(given, "sliding_attention");
    cfg.rotary_base_local = base(local, config.name({"rope_local_base_freq", "rope_theta"}));
    const auto type = scaling_of(local, config, given, by_layer).type;
    local.field().require(type == "none", "must be of the type default, got '", type, "'");
  }

  cfg.rotary_dim = cfg.d_head;
  const char* const part_key = config.name({"partial_rotary_factor", "rotary_pct"});
  const bool has_part =
      config.has(part_key);  // else transformers rotates whole heads, or fails where it scales
  if (!has_part && cfg.rotary_scaling.type == "none") return;
  const double otherwise = has_part                   ? config.at(part_key).number()
                           : given.contains(part_key) ? field_of(given, part_key).number()
                                                      : 1.0;
  const auto part = rope.number("partial_rotary_factor", otherwise);
  const auto place = rope.has("partial_rotary_factor") ? "partial_rotary_factor" : part_key;
  check<ConfigError>(part > 0 && part <= 1, kConfigJson, "'", place, "' must be above 0 and at most 1, got ",
                     part);
  cfg.rotary_dim = static_cast<int64_t>(static_cast<double>(cfg.d_head) * part);
  check<ConfigError>(has_part || cfg.rotary_dim == cfg.d_head, kConfigJson, "'", place,
                     "' must be 1 in this family, got ", part);
  check<ConfigError>(cfg.rotary_dim > 0 && cfg.rotary_dim % 2 == 0, kConfigJson, "'", place,
                     "' must leave an even number of a head's ", cfg.d_head, " dimensions, got ", part);
}

}  // namespace introspect::models
