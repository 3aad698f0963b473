#include "introspect/hooks/intervention_json.h"

#include <cmath>

#include <nlohmann/json.hpp>

#include "core/dense.h"
#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::hooks {

namespace {

using Json = nlohmann::ordered_json;
using Field = JsonField<ConfigError>;

constexpr auto kWho = "intervention: ";

torch::Tensor look_up(const Field& field, const TensorTable& table) {
  const auto hash = field.text();
  const auto found = table.find(hash);
  check<ConfigError>(found != table.end(), kWho, "the tensor ", excerpt(hash), " is not in the table");
  const auto actual = tensor_hash(found->second);
  check<ConfigError>(actual == found->first, kWho, "the tensor under ", excerpt(hash), " has another hash, ",
                     actual);
  return found->second;
}

/// A hash for a tensor "v" alone, null for none, otherwise an object of hashes.
Operands look_up_all(const Field& field, const TensorTable& table) {
  if (field.is_null()) return {};
  if (!field.is_object()) return look_up(field, table);
  Operands::Tensors out;
  field.for_each_field([&](const std::string& name, const Field& hash) { out[name] = look_up(hash, table); });
  return out;
}

Json hashes_json(const Operands& operands, TensorTable& table) {
  Json out = nullptr;
  for (const auto& [name, tensor] : operands) {
    const auto hash = tensor_hash(tensor);
    table.try_emplace(hash, tensor.detach().cpu().contiguous());
    if (operands.is_v()) return hash;
    out[name] = hash;
  }
  return out;
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

TextFilter parse_filter(const Field& json) {
  TextFilter out;
  json.for_each_field([&](const std::string& key, const Field& field) {
    if (key == "phase") {
      out.phase = parse_phase(field.text());
    } else if (key == "tokens") {
      out.tokens = field.integers();
    } else if (key == "not_tokens") {
      out.not_tokens = field.integers();
    } else if (key == "after") {
      out.after = field.integers();
    } else if (key == "skip_padding") {
      out.skip_padding = field.boolean();
    } else {
      throw ConfigError(concat(kWho, "there is no field ", excerpt(key), " of text"));
    }
  });
  return out;
}

void read_field(Intervention& out, const std::string& key, const Field& field, const TensorTable& table) {
  if (key == "op") {
    out.op = field.text();
  } else if (key == "point") {
    out.point = parse_point(field.text());
  } else if (key == "strength") {
    out.strength = field.number();
  } else if (key == "first_position") {
    out.first_position = field.integer();
  } else if (key == "last_position") {
    if (!field.is_null()) out.last_position = field.integer();
  } else if (key == "positions") {
    out.positions = field.integers();
  } else if (key == "heads") {
    out.heads = field.integers();
  } else if (key == "rows") {
    out.rows = field.integers();
  } else if (key == "parameters") {
    field.for_each_field(
        [&](const std::string& name, const Field& value) { out.parameters[name] = value.number(); });
  } else if (key == "text") {
    out.text = parse_filter(field);
  } else if (key == "source") {
    out.source = parse_point(field.text());
  } else if (key == "source_layer") {
    out.source_layer = field.integer();
  } else if (key == "values") {
    field.for_each_field([&](const std::string& layer, const Field& hash) {
      out.values[parse_key<ConfigError>(layer, kWho, "a layer")] = look_up_all(hash, table);
    });
  } else {
    throw ConfigError(concat(kWho, "there is no field ", excerpt(key)));
  }
}

}  // namespace

std::string tensor_hash(const torch::Tensor& tensor) {
  check_dense<ShapeError>(tensor, "tensor_hash: the tensor");
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
  for (const auto& [layer, operands] : i.values) values[std::to_string(layer)] = hashes_json(operands, table);
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
  if (i.source) out["source"] = point_name(*i.source);
  if (i.source_layer) out["source_layer"] = *i.source_layer;
  return out.dump();
}

Intervention from_json(const std::string& text, const TensorTable& table) {
  const auto json = parse_json<ConfigError>(text, "intervention");
  Intervention out;
  try {
    Field(json, kWho).for_each_field([&](const std::string& key, const Field& field) {
      read_field(out, key, field, table);
    });
    find_operator(out.op);
  } catch (const std::invalid_argument& error) {  // a point, a phase or an operator that does not exist
    throw ConfigError(error.what());
  }
  return out;
}

}  // namespace introspect::hooks
