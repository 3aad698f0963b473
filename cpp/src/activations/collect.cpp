#include "introspect/activations/collect.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "introspect/activations/collect_positions.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/engine/run_trie.h"
#include "introspect/io/safetensors.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "core/parallel.h"

namespace introspect::activations {
namespace {

constexpr auto kFormat = "activations";
constexpr auto kTensor = "activations";

/// Lengths stand before the texts, so that no two lists of texts are one message.
std::string hash_of(const std::vector<std::string>& texts) {
  Sha256 hash;
  for (const auto& text : texts) hash.update(concat(text.size(), ":")).update(text);
  return hash.hex();
}

std::vector<int64_t> layers_of(const models::Model& model, const ReadOptions& read) {
  auto layers = read.layers.value_or(std::vector<int64_t>());
  if (!read.layers)
    for (int64_t layer = 1; layer < model.cfg().n_layers; ++layer) layers.push_back(layer);
  check<std::invalid_argument>(!layers.empty(),
                               "collect_activations: at least one layer is needed, got none");
  for (const int64_t layer : layers)
    check<std::out_of_range>(layer >= 0 && layer < model.cfg().n_layers,
                             "collect_activations: layers must be 0 to ", model.cfg().n_layers - 1, ", got ",
                             layer);
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

void check_point(const models::Model& model, hooks::Point point) {
  const auto points = models::hook_points(model.cfg());
  points.parse(hooks::hook_name({point, 0}));
  const auto width = points.width(point);
  const bool a_model_for_every_head = hooks::head_axis(point) && width == model.cfg().d_model;
  check<std::invalid_argument>(width && *width > 1 && !a_model_for_every_head,
                               "collect_activations: the point must have one vector a position, got ",
                               hooks::point_name(point),
                               !width        ? ", which has one for every head and key"
                               : *width == 1 ? ", which has one number"
                                             : ", which has one of d_model for every head");
}

/// The tokens [first, last) that are read of a text of `length` tokens.
std::pair<int64_t, int64_t> tokens_read(const ReadPosition& position, int64_t length, size_t row,
                                        const std::string& text) {
  const auto from_start = [&](int64_t index) { return index < 0 ? index + length : index; };
  const auto first = from_start(position.first);
  const auto last = !position.is_span ? first + 1 : from_start(position.last.value_or(length));
  check<std::out_of_range>(first >= 0 && first < length && last <= length,
                           "collect_activations: the read position must lie in every text, got ",
                           to_string(position), " for text ", row, " of ", length, " tokens, ",
                           excerpt(text));
  check<std::invalid_argument>(last > first, "collect_activations: the span must not be empty, got ",
                               to_string(position), " for text ", row, " of ", length, " tokens, ",
                               excerpt(text));
  return {first, last};
}

std::vector<std::vector<int64_t>> tokenized(const models::Model& model,
                                            const std::vector<std::string>& texts) {
  model.tokenizer();
  std::vector<std::vector<int64_t>> out(texts.size());
  parallel_for(0, static_cast<int64_t>(texts.size()), 64, [&](int64_t first, int64_t last) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
      const auto ids = model.to_tokens(texts[i]).flatten();
      check<std::invalid_argument>(ids.numel() > 0, "collect_activations: every text must have tokens, got ",
                                   excerpt(texts[i]));
      out[i].assign(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel());
    }
  });
  return out;
}

/// The texts once each, and where each of those given stands among them.
struct Distinct {
  std::vector<std::string> texts;
  std::vector<int64_t> places;
};

Distinct distinct(const std::vector<std::string>& texts) {
  Distinct out;
  std::unordered_map<std::string_view, int64_t> known;
  for (const auto& text : texts) {
    const auto [place, is_new] = known.emplace(text, static_cast<int64_t>(out.texts.size()));
    if (is_new) out.texts.push_back(text);
    out.places.push_back(place->second);
  }
  return out;
}

}  // namespace

std::string to_string(const ReadPosition& position) {
  if (!position.is_span) return std::to_string(position.first);
  return concat("mean ", position.first, ":", position.last ? std::to_string(*position.last) : "");
}

Activations without_values(const models::Model& model, const ReadOptions& read) {
  Activations out;
  out.layers = layers_of(model, read);
  check_point(model, read.point);
  out.position = read.position;
  out.point = read.point;
  out.last_layer_after_norm = read.last_layer_after_norm;
  out.model_name = model.cfg().model_name;
  out.model_hash = model.hash();
  out.model_type = models::model_type(model.cfg());
  return out;
}

std::vector<Activations> collect_positions(const models::Model& model, const std::vector<std::string>& texts,
                                           const std::vector<ReadPosition>& positions,
                                           const CollectOptions& options) {
  check<std::invalid_argument>(!texts.empty(), "collect_activations: at least one text is needed, got none");
  check<std::invalid_argument>(!positions.empty(),
                               "collect_activations: at least one position is needed, got none");
  const auto& read = options.read;
  auto common = without_values(model, read);
  common.texts_hash = hash_of(texts);
  const auto once = distinct(texts);
  const engine::TokenTrie trie(tokenized(model, once.texts));
  engine::TrieReads reads{{}, common.layers, read.point, {}, read.last_layer_after_norm};
  int64_t place = 0;  // of the result: every position of the first text, then of the second
  for (size_t row = 0; row < once.texts.size(); ++row) {
    const auto path = trie.path(trie.ends()[row]);
    for (const auto& position : positions) {
      const auto [first, last] =
          tokens_read(position, static_cast<int64_t>(path.size()), row, once.texts[row]);
      reads.nodes.insert(reads.nodes.end(), path.begin() + first, path.begin() + last);
      reads.rows.insert(reads.rows.end(), static_cast<size_t>(last - first), place++);
    }
  }
  // Rows of one node each need no means.
  if (static_cast<int64_t>(reads.nodes.size()) == place) reads.rows.clear();
  const auto values =
      engine::run_trie(model, trie, reads, {options.memory_budget, options.progress}).flatten(2);
  const auto places = torch::tensor(once.places, torch::kInt64);
  std::vector<Activations> out;
  for (size_t i = 0; i < positions.size(); ++i) {
    out.push_back(common);
    out.back().position = positions[i];
    if (positions.size() == 1 && once.texts.size() == texts.size())
      out.back().values_NLD = values;
    else
      out.back().values_NLD =
          values.index_select(0, places * static_cast<int64_t>(positions.size()) + static_cast<int64_t>(i));
  }
  return out;
}

Activations collect_activations(const models::Model& model, const std::vector<std::string>& texts,
                                const CollectOptions& options) {
  return std::move(collect_positions(model, texts, {options.read.position}, options).front());
}

void Activations::save(const std::filesystem::path& path) const {
  nlohmann::json position_json = {{"first", position.first}, {"is_span", position.is_span}};
  if (position.last) position_json["last"] = *position.last;
  const nlohmann::json origin = {{"layers", layers},
                                 {"position", position_json},
                                 {"point", hooks::point_name(point)},
                                 {"last_layer_after_norm", last_layer_after_norm},
                                 {"texts_hash", texts_hash},
                                 {"model_name", model_name},
                                 {"model_hash", model_hash},
                                 {"model_type", model_type}};
  io::save_safetensors(path, {{kTensor, values_NLD}}, {{"format", kFormat}, {"origin", origin.dump()}});
}

Activations Activations::load(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto& metadata = file->metadata();
  const auto value = [&](const std::string& key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  check<IoError>(value("format") == kFormat && file->has(kTensor), "Activations::load: ", path.string(),
                 ": the metadata 'format' must be '", kFormat, "' and the tensor '", kTensor,
                 "' be there, got '", value("format"), "'");
  Activations out;
  const auto who = concat("Activations::load: ", path.string(), ": where they are from");
  const auto json = parse_json<IoError>(value("origin"), who);
  const JsonField<IoError> field(json, who + ": ");
  out.layers = field.at("layers").integers();
  const auto position = field.at("position");
  out.position.first = position.at("first").integer();
  out.position.is_span = position.at("is_span").boolean();
  if (position.has("last")) out.position.last = position.at("last").integer();
  try {
    out.point = hooks::parse_point(field.at("point").text());
  } catch (const HookError& error) {
    throw IoError(concat(who, ": ", error.what()));
  }
  out.last_layer_after_norm = field.at("last_layer_after_norm").boolean();
  out.texts_hash = field.at("texts_hash").text();
  out.model_name = field.at("model_name").text();
  out.model_hash = field.at("model_hash").text();
  out.model_type = field.at("model_type").text();
  const auto shape = file->shape(kTensor);
  check<IoError>(shape.size() == 3 && shape[1] == static_cast<int64_t>(out.layers.size()),
                 "Activations::load: ", path.string(), ": the tensor must be [texts, ", out.layers.size(),
                 " layers, d], got ", shape.size(), " dimensions");
  out.values_NLD = file->read(kTensor, file->dtype(kTensor) == "F64" ? torch::kFloat64 : torch::kFloat32);
  return out;
}

}  // namespace introspect::activations
