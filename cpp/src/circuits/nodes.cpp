#include "introspect/circuits/nodes.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "introspect/core/check.h"

#include "core/excerpt.h"

namespace introspect::circuits {

namespace {

constexpr std::string_view kLetters = "qkv";

/// The number at the front of `text`, which is cut off it; -1 if there is none.
int64_t take_number(std::string_view& text) {
  int64_t number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || number < 0) return -1;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return number;
}

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// `a3.h2`, `a3.g0` or `m3` taken apart, without what may follow it.
struct Parsed {
  char kind = 0;  // 'h', 'g' or 'm'; 0: none of these
  int64_t layer = 0, index = 0;
};

Parsed take_node(std::string_view& text) {
  Parsed out;
  if (take(text, "m")) {
    out.layer = take_number(text);
    out.kind = out.layer >= 0 ? 'm' : '\0';
  } else if (take(text, "a")) {
    out.layer = take_number(text);
    const char kind = text.starts_with(".h") ? 'h' : text.starts_with(".g") ? 'g' : '\0';
    if (out.layer < 0 || kind == 0) return {};
    text.remove_prefix(2);
    out.index = take_number(text);
    out.kind = out.index >= 0 ? kind : '\0';
  }
  return out;
}

}  // namespace

Nodes Nodes::of(const models::Config& cfg, bool ungrouped) {
  return {cfg.n_layers, cfg.n_heads, ungrouped ? cfg.n_heads : cfg.n_key_value_heads, cfg.d_model,
          cfg.parallel_attn_mlp};
}

int64_t Nodes::n_edges() const {
  int64_t n = n_senders();
  for (int64_t layer = 0; layer < n_layers; ++layer)
    n += (n_readers() - 1) * head(layer, 0) + n_before(mlp_reader(layer));
  return n;
}

Nodes::Fed Nodes::fed_by(int64_t receiver) const {
  const int64_t layer = layer_of(receiver), reader = receiver % n_readers();
  if (layer == n_layers) return {};
  if (reader == n_readers() - 1) return {mlp(layer), 1};
  if (reader < n_heads) return {head(layer, reader), 1};
  const int64_t in_group = n_heads / n_groups;
  return {head(layer, (reader - n_heads) % n_groups * in_group), in_group};
}

int64_t Nodes::n_before(int64_t receiver) const {
  const int64_t layer = layer_of(receiver);
  if (layer == n_layers) return n_senders();
  return receiver == mlp_reader(layer) && !parallel ? mlp(layer) : head(layer, 0);
}

torch::Tensor Nodes::edges() const {
  auto out = at::zeros({n_senders(), n_receivers()}, torch::kBool);
  for (int64_t r = 0; r < n_receivers(); ++r) out.select(1, r).narrow(0, 0, n_before(r)).fill_(true);
  return out;
}

std::string Nodes::sender_name(int64_t sender) const {
  if (sender == 0) return "input";
  if (sender == n_senders()) return "logits";
  const int64_t layer = (sender - 1) / (n_heads + 1), h = (sender - 1) % (n_heads + 1);
  return h == n_heads ? concat("m", layer) : concat("a", layer, ".h", h);
}

std::string Nodes::receiver_name(int64_t receiver) const {
  const int64_t layer = layer_of(receiver), reader = receiver % n_readers();
  if (layer == n_layers) return "logits";
  if (reader == n_readers() - 1) return concat("m", layer);
  if (reader < n_heads) return concat("a", layer, ".h", reader, "<q>");
  const int64_t at = reader - n_heads;
  return concat("a", layer, n_groups == n_heads ? ".h" : ".g", at % n_groups, at < n_groups ? "<k>" : "<v>");
}

std::string Nodes::edge_name(int64_t sender, int64_t receiver) const {
  return sender_name(sender) + "->" + receiver_name(receiver);
}

int64_t Nodes::parse_node(const std::string& name) const {
  if (name == "input") return 0;
  if (name == "logits") return n_senders();
  std::string_view rest = name;
  const auto node = take_node(rest);
  check<std::invalid_argument>((node.kind == 'h' || node.kind == 'm') && rest.empty(),
                               "circuit: a node is input, a{layer}.h{head}, m{layer} or logits, got ",
                               excerpt(name));
  check<std::invalid_argument>(node.layer < n_layers && node.index < n_heads, "circuit: there is no node ",
                               excerpt(name), ": the model has ", n_layers, " layers of ", n_heads, " heads");
  return node.kind == 'm' ? mlp(node.layer) : head(node.layer, node.index);
}

std::pair<int64_t, int64_t> Nodes::parse_edge(const std::string& name) const {
  const auto arrow = name.find("->");
  check<std::invalid_argument>(arrow != std::string::npos, "circuit: an edge is `a0.h0->a1.h2<k>`, got ",
                               excerpt(name));
  const int64_t sender = parse_node(name.substr(0, arrow));
  const auto target = name.substr(arrow + 2);
  int64_t receiver = logits();
  if (target != "logits") {
    std::string_view rest = target;
    const auto node = take_node(rest);
    const bool is_mlp = node.kind == 'm';
    const auto letter = rest.size() == 3 && rest[0] == '<' && rest[2] == '>' ? kLetters.find(rest[1])
                                                                             : std::string_view::npos;
    check<std::invalid_argument>(
        node.kind != 0 && (is_mlp ? rest.empty() : letter != std::string_view::npos) &&
            (node.kind != 'g' || (letter > 0 && n_groups != n_heads)),
        "circuit: an edge goes to a{layer}.h{head}<q|k|v>, ",
        n_groups != n_heads ? "a{layer}.g{group}<k|v>, " : "", "m{layer} or logits, got ", excerpt(name));
    const int64_t among = node.kind == 'g' ? n_groups : n_heads;
    check<std::invalid_argument>(node.layer < n_layers && node.index < among, "circuit: there is no node ",
                                 excerpt(target), ": the model has ", n_layers, " layers of ", n_heads,
                                 " heads", node.kind == 'g' ? concat(" in ", n_groups, " groups") : "");
    const int64_t group = node.kind == 'g' ? node.index : node.index / (n_heads / n_groups);
    const auto kind = static_cast<int64_t>(letter);
    receiver = is_mlp ? mlp_reader(node.layer)
                      : first_reader(node.layer) +
                            (kind == 0 ? node.index : n_heads + (kind - 1) * n_groups + group);
  }
  check<std::invalid_argument>(sender < n_before(receiver), "circuit: there is no edge ", excerpt(name), ": ",
                               sender_name(sender), " does not come before ", receiver_name(receiver));
  return {sender, receiver};
}

}  // namespace introspect::circuits
