#include "core/json.h"
#include "introspect/circuits/circuit.h"
#include "introspect/core/check.h"
#include "introspect/io/file.h"

#include "core/excerpt.h"

namespace introspect::circuits {

namespace {

using Field = JsonField<ConfigError>;

constexpr int64_t kMostReceivers = 1 << 15;

Nodes nodes_of(const Field& cfg) {
  Nodes out;
  const auto size = [&](const char* name) {
    const auto field = cfg.at(name);
    const int64_t n = field.integer();
    field.require(n > 0 && n < kMostReceivers, "must be from 1 to ", kMostReceivers - 1, ", got ", n);
    return n;
  };
  out.n_layers = size("n_layers");
  out.n_heads = size("n_heads");
  out.d_model = size("d_model");
  out.n_groups = cfg.has("n_key_value_groups") ? size("n_key_value_groups") : out.n_heads;
  if (cfg.has("parallel_attn_mlp")) out.parallel = cfg.at("parallel_attn_mlp").boolean();
  cfg.require(out.n_heads % out.n_groups == 0, "must have a multiple of n_key_value_groups = ", out.n_groups,
              " heads, got ", out.n_heads);
  cfg.require(out.n_receivers() < kMostReceivers, "has more nodes than any model: ", out.n_receivers());
  return out;
}

template <typename Parse>
auto known(const Field& field, const Parse& parse) {
  try {
    return parse();
  } catch (const std::invalid_argument& error) {
    field.require(false, "is not of this model: ", error.what());
    throw;
  }
}

}  // namespace

std::string Circuit::to_json() const {
  nlohmann::json out;
  out["cfg"] = {{"n_layers", nodes.n_layers},
                {"n_heads", nodes.n_heads},
                {"parallel_attn_mlp", nodes.parallel},
                {"d_model", nodes.d_model}};
  if (nodes.n_groups != nodes.n_heads) out["cfg"]["n_key_value_groups"] = nodes.n_groups;
  for (int64_t s = 0; s <= nodes.n_senders(); ++s) out["nodes"][nodes.sender_name(s)] = {{"in_graph", false}};
  for (const int64_t s : senders()) out["nodes"][nodes.sender_name(s)]["in_graph"] = true;
  out["nodes"]["logits"]["in_graph"] = true;
  const auto is_in = in_graph.accessor<bool, 2>();
  const auto score = scores.accessor<double, 2>();
  auto& edges = out["edges"] = nlohmann::json::object();
  for (int64_t r = 0; r < nodes.n_receivers(); ++r)
    for (int64_t s = 0; s < nodes.n_before(r); ++s)
      edges[nodes.edge_name(s, r)] = {{"score", score[s][r]}, {"in_graph", is_in[s][r]}};
  return out.dump();
}

Circuit Circuit::from_json(const std::string& text) {
  const JsonRules rules{.max_depth = 8, .max_bytes = size_t{1} << 29, .numbers_of_python = true};
  const auto parsed = parse_json<ConfigError>(text, "circuit", rules);
  const Field root(parsed, "circuit: ");
  const auto nodes = nodes_of(root.at("cfg"));
  auto out = whole(nodes);
  out.in_graph = at::zeros_like(out.in_graph);
  std::vector<bool> is_out(static_cast<size_t>(nodes.n_senders()) + 1, false);
  root.at("nodes").for_each_field([&](const std::string& name, const Field& field) {
    const auto node = known(field, [&] { return nodes.parse_node(name); });
    is_out[static_cast<size_t>(node)] = !field.at("in_graph").boolean();
  });
  auto flags = out.in_graph.accessor<bool, 2>();
  auto scores = out.scores.accessor<double, 2>();
  root.at("edges").for_each_field([&](const std::string& name, const Field& field) {
    const auto [sender, receiver] = known(field, [&] { return nodes.parse_edge(name); });
    if (field.has("score") && !field.at("score").is_null())
      scores[sender][receiver] = field.at("score").number();
    const auto fed = nodes.fed_by(receiver);
    bool reader_is_in = fed.n == 0;
    for (int64_t s = fed.first; s < fed.first + fed.n; ++s) reader_is_in |= !is_out[static_cast<size_t>(s)];
    flags[sender][receiver] =
        field.at("in_graph").boolean() && !is_out[static_cast<size_t>(sender)] && reader_is_in;
  });
  return out;
}

void Circuit::save(const std::filesystem::path& path) const {
  io::write_atomically(path, to_json());
}

Circuit Circuit::load(const std::filesystem::path& path) {
  return from_json(io::read_text(path));
}

}  // namespace introspect::circuits
