#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/circuits/attribution_graph.h"
#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

namespace introspect::circuits {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kSchema = 1;
constexpr int64_t kMostNodes = 200'000, kMostLinks = 20'000'000;

/// One number for a feature of a layer, as the front ends of such files want it (Cantor's pairing).
int64_t paired(int64_t layer, int64_t feature) {
  return (layer + feature) * (layer + feature + 1) / 2 + feature;
}

/// Before the layer in ids of what is at no MLP.
const char* prefix(FeatureSite site) {
  return site == FeatureSite::attention ? "a" : site == FeatureSite::residual ? "r" : "";
}

std::string node_id(const GraphNode& node, int64_t n_layers) {
  switch (node.kind) {
    case GraphNodeKind::feature:
      return concat(prefix(node.site), node.layer, "_", node.feature, "_", node.position);
    case GraphNodeKind::error:
      return concat(prefix(node.site), node.layer, "_-1_", node.position);
    case GraphNodeKind::token:
      return concat("E_", node.feature, "_", node.position);
    case GraphNodeKind::bias:
      return concat("bias_", node.layer);
    case GraphNodeKind::injection:
      return concat("injection_", node.layer);
    case GraphNodeKind::logit:
      return concat(n_layers + 1, "_", node.feature, "_", node.position);
  }
  throw std::logic_error("circuits: a kind of node without an id");
}

/// Features of attention have the names of those that read it in other ways (Lorsa): front ends draw them.
const char* feature_type(GraphNodeKind kind, FeatureSite site) {
  switch (kind) {
    case GraphNodeKind::feature:
      return site == FeatureSite::attention  ? "lorsa"
             : site == FeatureSite::residual ? "sae"
                                             : "cross layer transcoder";
    case GraphNodeKind::error:
      return site == FeatureSite::attention  ? "lorsa error"
             : site == FeatureSite::residual ? "reconstruction error"
                                             : "mlp reconstruction error";
    case GraphNodeKind::token:
      return "embedding";
    case GraphNodeKind::bias:
      return "bias";
    case GraphNodeKind::logit:
      return "logit";
    case GraphNodeKind::injection:
      return "injection";
  }
  throw std::logic_error("circuits: a kind of node without a type");
}

/// Whether the front ends of such files know the kind.
bool is_drawn(GraphNodeKind kind) {
  return kind != GraphNodeKind::bias && kind != GraphNodeKind::injection;
}

std::pair<GraphNodeKind, FeatureSite> kind_of(const std::string& type) {
  for (const auto kind : {GraphNodeKind::feature, GraphNodeKind::error, GraphNodeKind::token,
                          GraphNodeKind::bias, GraphNodeKind::logit, GraphNodeKind::injection})
    for (const auto site : {FeatureSite::mlp, FeatureSite::attention, FeatureSite::residual})
      if (type == feature_type(kind, site)) return {kind, site};
  throw ConfigError("AttributionGraph: a node's feature_type must be one of a transcoder graph, got '" +
                    type + "'");
}

int64_t n_layers_of(const AttributionGraph& graph) {
  int64_t out = 0;
  for (const auto& node : graph.nodes)
    out = std::max(out, node.kind == GraphNodeKind::logit ? node.layer : node.layer + 1);
  return out;
}

/// A node's influence as such files give it: the share of all influence that this and what is above it hold together.
std::vector<double> cumulative_shares(const AttributionGraph& graph) {
  const auto v = graph.influence();
  const auto [sorted, order] = v.sort(/*stable=*/true, 0, /*descending=*/true);
  const auto shares = sorted.cumsum(0) / std::max(v.sum().item<double>(), 1e-300);
  std::vector<double> out(graph.nodes.size());
  for (int64_t i = 0; i < order.size(0); ++i)
    out[size_t(order[i].item<int64_t>())] = shares[i].item<double>();
  return out;
}

std::string fixed(double value, int digits) {
  char buffer[32];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

/// The whole numbers between underscores of a node's id.
std::vector<int64_t> parts_of_id(const std::string& id) {
  std::vector<int64_t> out;
  size_t first = 0;
  while (first <= id.size()) {
    const auto end = std::min(id.find('_', first), id.size());
    auto part = id.substr(first, end - first);
    if (first == 0 && part.size() > 1 && (part[0] == 'a' || part[0] == 'r')) part.erase(0, 1);
    char* stop = nullptr;
    const auto number = std::strtoll(part.c_str(), &stop, 10);
    check<ConfigError>(part == "E" || part == "bias" || part == "injection" || (!part.empty() && *stop == 0),
                       "AttributionGraph: a node id must be", " <layer>_<feature>_<position>, got '",
                       id.substr(0, 60), "'");
    check<ConfigError>(std::llabs(number) < (int64_t{1} << 40),
                       "AttributionGraph: a node id must hold smaller numbers than '", part.substr(0, 60),
                       "'");
    out.push_back(part == "E" || part == "bias" || part == "injection" ? -1 : number);
    first = end + 1;
  }
  return out;
}

int64_t layer_of(const std::string& text) {
  const auto layer = std::stoll(text);
  check<ConfigError>(layer >= -1 && layer < 1'000'000, "AttributionGraph: a node's layer must be one, got ",
                     layer);
  return layer;
}

void set_edges(AttributionGraph& graph, std::vector<std::tuple<int64_t, int64_t, double>> edges) {
  std::sort(edges.begin(), edges.end());
  std::vector<int64_t> offsets{0}, sources;
  std::vector<float> weights;
  for (const auto& [target, source, weight] : edges) {
    if (graph.targets.empty() || graph.targets.back() != target) {
      if (!graph.targets.empty()) offsets.push_back(static_cast<int64_t>(sources.size()));
      graph.targets.push_back(target);
    }
    sources.push_back(source);
    weights.push_back(static_cast<float>(weight));
  }
  if (!graph.targets.empty()) offsets.push_back(static_cast<int64_t>(sources.size()));
  graph.offsets = at::tensor(offsets, at::kLong);
  graph.sources = at::tensor(sources, at::kLong);
  graph.weights = at::tensor(weights, at::kFloat);
}

}  // namespace

std::string AttributionGraph::to_json(const std::string& slug, const std::string& scan,
                                      bool with_biases) const {
  const int64_t L = n_layers_of(*this);
  const auto shares = cumulative_shares(*this);
  int64_t last = 0;
  for (const auto& node : nodes) last = std::max(last, node.position);
  Json out;
  out["metadata"] = {{"slug", slug},
                     {"scan", scan},
                     {"transcoder_list", Json::array()},
                     {"prompt_tokens", token_texts},
                     {"prompt", prompt},
                     {"schema_version", kSchema},
                     {"info", {{"generator", {{"name", "introspect"}}}, {"transcoder_set", transcoders}}},
                     {"introspect",
                      {{"model_name", model_name},
                       {"model_hash", model_hash},
                       {"tokens", tokens},
                       {"n_layers", L},
                       {"notes", Json::parse(notes)}}}};
  out["qParams"] = {{"pinnedIds", Json::array()},
                    {"supernodes", Json::array()},
                    {"linkType", "both"},
                    {"clickedId", ""},
                    {"sg_pos", ""}};
  auto& listed = out["nodes"] = Json::array();
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto& node = nodes[i];
    if (!with_biases && !is_drawn(node.kind)) continue;
    const bool is_feature = node.kind == GraphNodeKind::feature, is_logit = node.kind == GraphNodeKind::logit;
    const bool is_token = node.kind == GraphNodeKind::token;
    Json one;
    one["node_id"] = node_id(node, L);
    one["feature"] = is_feature ? paired(node.layer, node.feature) : node.feature;
    one["layer"] = is_token ? std::string("E") : std::to_string(is_logit ? L + 1 : node.layer);
    one["ctx_idx"] = std::max<int64_t>(node.position, 0);
    one["feature_type"] = feature_type(node.kind, node.site);
    one["token_prob"] = is_logit ? node.value : 0.0;
    one["is_target_logit"] = is_logit;
    one["run_idx"] = 0;
    one["reverse_ctx_idx"] = last - std::max<int64_t>(node.position, 0);
    one["jsNodeId"] = concat(node_id(node, L), "-0");
    one["clerp"] =
        is_logit   ? concat("Output \"", node.name, "\" (p=", fixed(node.value, 3), ")")
        : is_token ? concat("Emb: \"", node.name, "\"")
        : node.kind == GraphNodeKind::error
            ? concat("Err: ", to_string(node.site), " ", node.layer, " \"",
                     node.position < int64_t(token_texts.size()) ? token_texts[size_t(node.position)] : "",
                     "\"")
            : "";
    one["influence"] = is_logit ? Json(nullptr) : Json(shares[i]);
    one["activation"] = is_feature ? Json(node.value) : Json(nullptr);
    listed.push_back(std::move(one));
  }
  auto& links = out["links"] = Json::array();
  const auto* bounds = offsets.const_data_ptr<int64_t>();
  const auto* from = sources.const_data_ptr<int64_t>();
  const auto values = weights.to(torch::kFloat64).contiguous();
  const auto* w = values.const_data_ptr<double>();
  for (size_t row = 0; row < targets.size(); ++row)
    for (int64_t e = bounds[row]; e < bounds[row + 1]; ++e) {
      const auto& source = nodes[size_t(from[e])];
      if (!with_biases && !is_drawn(source.kind)) continue;
      links.push_back({{"source", node_id(source, L)},
                       {"target", node_id(nodes[size_t(targets[row])], L)},
                       {"weight", w[e]}});
    }
  return out.dump(-1, ' ', false, Json::error_handler_t::replace);
}

AttributionGraph AttributionGraph::from_json(const std::string& text) {
  const auto who = std::string("AttributionGraph: ");
  const auto json = parse_json<ConfigError>(text, "AttributionGraph", {.max_bytes = size_t{1} << 30});
  AttributionGraph graph;
  try {
    const auto& metadata = json.at("metadata");
    const auto version = metadata.value("schema_version", Json(kSchema));
    introspect::check<ConfigError>(version.is_number_integer() && version <= kSchema && version >= 0, who,
                                   "the file is of schema ", version.dump(), "; this reads up to ", kSchema);
    introspect::check<ConfigError>(json.at("nodes").is_array() && json.at("links").is_array(), who,
                                   "nodes and links must be lists");
    introspect::check<ConfigError>(
        int64_t(json.at("nodes").size()) <= kMostNodes && int64_t(json.at("links").size()) <= kMostLinks, who,
        "at most ", kMostNodes, " nodes and ", kMostLinks, " links are read, got ", json.at("nodes").size(),
        " and ", json.at("links").size());
    graph.prompt = metadata.value("prompt", std::string());
    graph.token_texts = metadata.value("prompt_tokens", std::vector<std::string>{});
    if (metadata.contains("info") && metadata["info"].is_object() &&
        metadata["info"].contains("transcoder_set"))
      graph.transcoders = metadata["info"].value("transcoder_set", std::string());
    if (metadata.contains("introspect")) {
      const auto& ours = metadata["introspect"];
      graph.model_name = ours.value("model_name", std::string());
      graph.model_hash = ours.value("model_hash", std::string());
      graph.tokens = ours.value("tokens", std::vector<int64_t>{});
      graph.notes = ours.contains("notes") ? ours["notes"].dump() : "{}";
    } else {
      graph.model_name = metadata.value("scan", std::string());
    }
    std::map<std::string, int64_t> number;
    int64_t deepest = 0;
    for (const auto& one : json.at("nodes")) {
      const auto id = one.at("node_id").get<std::string>();
      GraphNode node;
      std::tie(node.kind, node.site) = kind_of(one.at("feature_type").get<std::string>());
      const auto parts = parts_of_id(id);
      introspect::check<ConfigError>(number.emplace(id, graph.n_nodes()).second, who, "node id '",
                                     id.substr(0, 60), "' stands twice");
      introspect::check<ConfigError>(parts.size() >= 2, who, "a node id must have at least two parts, got '",
                                     id.substr(0, 60), "'");
      switch (node.kind) {
        case GraphNodeKind::feature:
          introspect::check<ConfigError>(parts.size() == 3, who,
                                         "a feature's id must be layer_feature_position, got '",
                                         id.substr(0, 60), "'");
          node.layer = parts[0];
          node.feature = parts[1];
          node.position = parts[2];
          introspect::check<ConfigError>(one.value("ctx_idx", node.position) == node.position, who, "node '",
                                         id.substr(0, 60),
                                         "' must be at the position that its id says, got ctx_idx ",
                                         one.value("ctx_idx", node.position));
          node.value = one.contains("activation") && one["activation"].is_number()
                           ? one["activation"].get<double>()
                           : 0.0;
          break;
        case GraphNodeKind::
            error:  // -1 stands where a feature's number does; before 0.5.1 the number of layers did
          node.layer = parts[0];
          node.feature = -1;
          node.position = one.at("ctx_idx").get<int64_t>();
          if (one.at("layer").is_string()) node.layer = layer_of(one["layer"].get<std::string>());
          break;
        case GraphNodeKind::token:
          node.layer = -1;
          node.feature = parts[1];
          node.position = one.at("ctx_idx").get<int64_t>();
          if (node.position < int64_t(graph.token_texts.size()) && node.position >= 0)
            node.name = graph.token_texts[size_t(node.position)];
          break;
        case GraphNodeKind::bias:
        case GraphNodeKind::injection:
          node.layer = layer_of(one.at("layer").get<std::string>());
          node.feature = -1;
          node.position = -1;
          break;
        case GraphNodeKind::logit: {
          node.feature = parts[1];
          node.position = one.at("ctx_idx").get<int64_t>();
          node.value = one.value("token_prob", 0.0);
          const auto clerp = one.value("clerp", std::string());
          const auto first = clerp.find('"'), end = clerp.rfind('"');
          node.name =
              first != std::string::npos && end > first ? clerp.substr(first + 1, end - first - 1) : clerp;
          break;
        }
      }
      if (node.kind != GraphNodeKind::logit) deepest = std::max(deepest, node.layer + 1);
      graph.nodes.push_back(std::move(node));
    }
    if (metadata.contains("introspect"))
      deepest = std::max(deepest, metadata["introspect"].value("n_layers", deepest));
    for (auto& node : graph.nodes)
      if (node.kind == GraphNodeKind::logit) node.layer = deepest;
    std::vector<std::tuple<int64_t, int64_t, double>> edges;
    for (const auto& link : json.at("links")) {
      const auto source = number.find(link.at("source").get<std::string>());
      const auto target = number.find(link.at("target").get<std::string>());
      introspect::check<ConfigError>(source != number.end() && target != number.end(), who,
                                     "a link names a node that is not there");
      edges.emplace_back(target->second, source->second, link.at("weight").get<double>());
    }
    set_edges(graph, std::move(edges));
  } catch (const Json::exception& error) {
    throw ConfigError(who + "the JSON is not one of a graph: " + error.what());
  } catch (const std::logic_error& error) {  // of std::stoll
    if (dynamic_cast<const std::invalid_argument*>(&error) == nullptr &&
        dynamic_cast<const std::out_of_range*>(&error) == nullptr)
      throw;
    throw ConfigError(who + "a number of the JSON cannot be read: " + error.what());
  }
  try {
    graph.check();
  } catch (const std::invalid_argument& error) {
    throw ConfigError(error.what());
  }
  return graph;
}

void AttributionGraph::save(const std::filesystem::path& path) const {
  Json meta;
  meta["model_name"] = model_name;
  meta["model_hash"] = model_hash;
  meta["prompt"] = prompt;
  meta["tokens"] = tokens;
  meta["token_texts"] = token_texts;
  meta["transcoders"] = transcoders;
  meta["notes"] = Json::parse(notes);
  auto& names = meta["names"] = Json::object();
  std::vector<int64_t> table;
  std::vector<double> values;
  for (size_t i = 0; i < nodes.size(); ++i) {
    const auto& node = nodes[i];
    table.insert(table.end(), {static_cast<int64_t>(node.kind), node.layer, node.position, node.feature,
                               static_cast<int64_t>(node.site)});
    values.push_back(node.value);
    if (!node.name.empty()) names[std::to_string(i)] = node.name;
  }
  // Whole numbers stand as float64, which holds them exactly: io reads floating tensors only.
  io::save_safetensors(
      path,
      {{"nodes", at::tensor(table, at::kLong).view({-1, 5}).to(torch::kFloat64)},
       {"values", at::tensor(values, at::kDouble)},
       {"targets", at::tensor(targets, at::kLong).to(torch::kFloat64)},
       {"offsets", offsets.to(torch::kFloat64)},
       {"sources", sources.to(torch::kFloat64)},
       {"weights", weights}},
      {{"introspect.attribution_graph", meta.dump(-1, ' ', false, Json::error_handler_t::replace)}});
}

AttributionGraph AttributionGraph::load(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto found = file->metadata().find("introspect.attribution_graph");
  introspect::check<IoError>(found != file->metadata().end(), path.string(),
                             " does not hold an attribution graph");
  AttributionGraph graph;
  try {
    const auto meta = parse_json<IoError>(found->second, path.string(), {.max_bytes = size_t{1} << 28});
    graph.model_name = meta.at("model_name");
    graph.model_hash = meta.at("model_hash");
    graph.prompt = meta.at("prompt");
    graph.tokens = meta.at("tokens").get<std::vector<int64_t>>();
    graph.token_texts = meta.at("token_texts").get<std::vector<std::string>>();
    graph.transcoders = meta.at("transcoders");
    graph.notes = meta.at("notes").dump();
    const auto whole = [&](const char* name) {
      const auto numbers = file->read(name, torch::kFloat64);
      introspect::check<std::invalid_argument>(at::isfinite(numbers).all().item<bool>() &&
                                                   (numbers == numbers.round()).all().item<bool>() &&
                                                   (numbers.abs() < 9e15).all().item<bool>(),
                                               name, " must be whole numbers");
      return numbers.to(torch::kLong).contiguous();
    };
    const auto table = whole("nodes"), targets = whole("targets");
    const auto values = file->read("values", torch::kFloat64).contiguous();
    graph.offsets = whole("offsets");
    graph.sources = whole("sources");
    const bool is_wide = file->dtype("weights") == "F64";
    graph.weights = file->read("weights", is_wide ? torch::kFloat64 : torch::kFloat32).contiguous();
    introspect::check<std::invalid_argument>(
        table.dim() == 2 && table.size(1) == 5 && values.dim() == 1 && values.size(0) == table.size(0) &&
            targets.dim() == 1,
        "nodes must be [nodes, 5], values [nodes] and targets [targets]");
    const auto* t = table.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < table.size(0); ++i, t += 5) {
      introspect::check<std::invalid_argument>(t[0] >= 0 && t[0] <= int64_t(GraphNodeKind::injection),
                                               "node ", i, " is of kind ", t[0], ", which is not known");
      introspect::check<std::invalid_argument>(t[4] >= 0 && t[4] <= int64_t(FeatureSite::residual), "node ",
                                               i, " is at site ", t[4], ", which is not known");
      GraphNode node{
          static_cast<GraphNodeKind>(t[0]), t[1], t[2], t[3], values.const_data_ptr<double>()[i], "",
          static_cast<FeatureSite>(t[4])};
      graph.nodes.push_back(std::move(node));
    }
    for (const auto& [key, name] : meta.at("names").items()) graph.nodes.at(std::stoull(key)).name = name;
    graph.targets.assign(targets.const_data_ptr<int64_t>(),
                         targets.const_data_ptr<int64_t>() + targets.size(0));
    graph.check();
  } catch (const Json::exception& error) {
    throw IoError(concat(path.string(), " is not a whole attribution graph: ", error.what()));
  } catch (const std::logic_error& error) {
    throw IoError(concat(path.string(), " is not a whole attribution graph: ", error.what()));
  }
  return graph;
}

}  // namespace introspect::circuits
