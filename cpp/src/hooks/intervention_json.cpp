#include "introspect/hooks/intervention_json.h"

#include <charconv>
#include <cmath>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::hooks {

namespace {

using Json = nlohmann::ordered_json;

int64_t parse_layer(const std::string& text) {
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), layer);
  check<ConfigError>(error == std::errc() && end == text.data() + text.size(),
                     "intervention: a layer must be a whole number, got '", text, "'");
  return layer;
}

torch::Tensor look_up(const Json& hash, const TensorTable& table) {
  if (hash.is_null()) return {};
  const auto found = table.find(hash.get<std::string>());
  check<ConfigError>(found != table.end(), "intervention: the tensor ", hash, " is not in the table");
  const auto actual = tensor_hash(found->second);
  check<ConfigError>(actual == found->first, "intervention: the tensor under ", hash, " has another hash, ",
                     actual);
  return found->second;
}

/// What differs from the defaults, so that what has no filter is written as if there were none.
Json filter_json(const TextFilter& filter) {
  Json out = Json::object();
  if (filter.phase != Phase::kAll) out["phase"] = phase_name(filter.phase);
  if (!filter.tokens.empty()) out["tokens"] = filter.tokens;
  if (!filter.not_tokens.empty()) out["not_tokens"] = filter.not_tokens;
  if (!filter.after.empty()) out["after"] = filter.after;
  if (filter.skip_padding) out["skip_padding"] = true;
  return out;
}

TextFilter parse_filter(const Json& json) {
  check<ConfigError>(json.is_object(), "intervention: \"text\" must be an object, got ", json);
  TextFilter out;
  for (const auto& [key, value] : json.items()) {
    if (key == "phase") {
      out.phase = parse_phase(value.get<std::string>());
    } else if (key == "tokens") {
      out.tokens = value.get<std::vector<int64_t>>();
    } else if (key == "not_tokens") {
      out.not_tokens = value.get<std::vector<int64_t>>();
    } else if (key == "after") {
      out.after = value.get<std::vector<int64_t>>();
    } else if (key == "skip_padding") {
      out.skip_padding = value.get<bool>();
    } else {
      throw ConfigError(concat("intervention: there is no field '", key, "' of \"text\""));
    }
  }
  return out;
}

void read_field(Intervention& out, const std::string& key, const Json& value, const TensorTable& table) {
  if (key == "op") {
    out.op = value.get<std::string>();
  } else if (key == "point") {
    out.point = parse_point(value.get<std::string>());
  } else if (key == "strength") {
    out.strength = value.get<double>();
  } else if (key == "first_position") {
    out.first_position = value.get<int64_t>();
  } else if (key == "last_position") {
    if (!value.is_null()) out.last_position = value.get<int64_t>();
  } else if (key == "positions") {
    out.positions = value.get<std::vector<int64_t>>();
  } else if (key == "heads") {
    out.heads = value.get<std::vector<int64_t>>();
  } else if (key == "rows") {
    out.rows = value.get<std::vector<int64_t>>();
  } else if (key == "parameters") {
    out.parameters = value.get<Parameters>();
  } else if (key == "text") {
    out.text = parse_filter(value);
  } else if (key == "values") {
    check<ConfigError>(value.is_object(), "intervention: \"values\" must be an object, got ", value);
    for (const auto& [layer, hash] : value.items()) out.values[parse_layer(layer)] = look_up(hash, table);
  } else {
    throw ConfigError(concat("intervention: there is no field '", key, "'"));
  }
}

}  // namespace

std::string tensor_hash(const torch::Tensor& tensor) {
  check<ShapeError>(tensor.defined() && tensor.layout() == torch::kStrided,
                    "tensor_hash: the tensor must be dense and defined");
  const auto bytes = tensor.detach().cpu().contiguous();
  Sha256 hash;
  hash.update(concat(c10::toString(bytes.scalar_type()), bytes.sizes(), ":"));
  return hash.update(bytes.const_data_ptr(), bytes.nbytes()).hex();
}

std::string to_json(const Intervention& i, TensorTable& table) {
  check<std::invalid_argument>(std::isfinite(i.strength), "intervention: the strength must be finite, got ",
                               i.strength);
  for (const auto& [name, parameter] : i.parameters)
    check<std::invalid_argument>(std::isfinite(parameter), "intervention: ", name, " must be finite, got ",
                                 parameter);
  Json values = Json::object();
  for (const auto& [layer, operand] : i.values) {
    auto& hash = values[std::to_string(layer)] = nullptr;
    if (!operand.defined()) continue;
    hash = tensor_hash(operand);
    table.try_emplace(hash.get<std::string>(), operand.detach().cpu().contiguous());
  }
  const bool open = i.last_position == std::numeric_limits<int64_t>::max();
  Json out{{"op", i.op},
           {"point", point_name(i.point)},
           {"strength", i.strength},
           {"first_position", i.first_position},
           {"last_position", open ? Json(nullptr) : Json(i.last_position)},
           {"positions", i.positions},
           {"heads", i.heads},
           {"rows", i.rows},
           {"values", values}};
  if (!i.parameters.empty()) out["parameters"] = i.parameters;
  if (!i.text.empty()) out["text"] = filter_json(i.text);
  return out.dump();
}

Intervention from_json(const std::string& text, const TensorTable& table) {
  Intervention out;
  try {
    const auto json = Json::parse(text);
    check<ConfigError>(json.is_object(), "intervention: the JSON must be an object, got ", json.type_name());
    for (const auto& [key, value] : json.items()) read_field(out, key, value, table);
  } catch (const Json::exception& error) {
    throw ConfigError(concat("intervention: the JSON does not describe one: ", error.what()));
  } catch (const std::invalid_argument& error) {
    throw ConfigError(error.what());
  }
  find_operator(out.op);
  return out;
}

}  // namespace introspect::hooks
