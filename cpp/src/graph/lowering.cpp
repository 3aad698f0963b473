#include "graph/lowering.h"

#include <algorithm>

#include "introspect/core/check.h"

namespace introspect::graph {

namespace {

/// True if what it does to a token depends on the token's place.
bool is_positional(const hooks::Intervention& i) {
  if (!i.positions.empty()) return true;
  const bool with_heads = hooks::head_axis(i.point).has_value();
  for (const auto& [layer, operands] : i.values)
    if (!operands.empty() && !hooks::find_operator(i.op).check_operands &&
        operands.v().dim() > (with_heads ? 3 : 2))
      return true;  // a stored activation of every position
  return hooks::position_axis(i.point) == 2;
}

/// True if a token's result depends on the other tokens that it is done to.
bool mixes_tokens(const hooks::Intervention& i) {
  if (!hooks::find_operator(i.op).mixes_positions) return false;
  return std::any_of(i.values.begin(), i.values.end(),
                     [](const auto& at_layer) { return at_layer.second.empty(); });
}

/// The positions [first, last) of a segment of n tokens that an intervention reaches.
std::pair<int64_t, int64_t> reach(const hooks::Intervention& i, int64_t n) {
  if (i.positions.empty()) return {i.first_position, std::min(i.last_position, n)};
  const auto [low, high] = std::minmax_element(i.positions.begin(), i.positions.end());
  return {*low, *high + 1};
}

using Range = std::pair<int64_t, int64_t>;

bool meet(const Range& a, const Range& b) {
  return a.first < b.second && b.first < a.second;
}

/// The ranges of a segment that nothing may cut: those of interventions that mix tokens, joined where they meet.
std::vector<Range> solid_ranges(const std::vector<hooks::Intervention>& interventions, int64_t n) {
  std::vector<Range> out;
  for (const auto& i : interventions) {
    if (!mixes_tokens(i)) continue;
    auto joined = reach(i, n);
    std::erase_if(out, [&](const Range& other) {
      if (!meet(joined, other)) return false;
      joined = {std::min(joined.first, other.first), std::max(joined.second, other.second)};
      return true;
    });
    out.push_back(joined);
  }
  return out;
}

}  // namespace

size_t Lowering::KeyHash::operator()(const Key& key) const {
  uint64_t h = 0;
  for (const int64_t part : {key.parent, key.model, key.id, key.actions, key.copied})
    h = (h ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15ULL + (h >> 29);
  return h;
}

Lowering::Lowering(const Graph& graph) : graph_(graph), actions_(1), action_ids_(1) {
  // Only what is read, and what that goes on from.
  std::vector<bool> needed(graph.nodes_.size(), false);
  for (const auto& [node, read] : graph.reads_) needed[static_cast<size_t>(node)] = true;
  for (size_t n = graph.nodes_.size(); n-- > 0;) {
    const auto& node = graph.nodes_[n];
    if (!needed[n]) continue;
    if (node.parent) needed[static_cast<size_t>(*node.parent)] = true;
    if (node.source >= 0) needed[static_cast<size_t>(node.source)] = true;
  }
  ends_.assign(graph.nodes_.size(), -1);
  for (size_t n = 0; n < graph.nodes_.size(); ++n) {
    if (!needed[n]) continue;
    const auto id = static_cast<NodeId>(n);
    if (graph.nodes_[n].model >= 0)
      add_segment(id);
    else
      add_splice(id);
  }
  cut();
  add_captures();
}

bool Lowering::is_solid(const Token& token) const {
  const auto& actions = actions_[static_cast<size_t>(token.actions)];
  return std::any_of(actions.begin(), actions.end(), mixes_tokens);
}

int64_t Lowering::step(Token token) {
  const Key key{token.parent, token.model, token.id, token.actions, token.copied};
  const auto [at, is_new] = known_.try_emplace(key, static_cast<int64_t>(tokens_.size()));
  if (!is_new) return at->second;
  // What mixes tokens is a thing of its own: nothing may be cut in the middle of it.
  const Key bare{token.parent < 0 ? -1 : tokens_[static_cast<size_t>(token.parent)].bare, token.model,
                 token.id, is_solid(token) ? token.actions : 0, token.copied};
  token.bare = bare_.try_emplace(bare, static_cast<int64_t>(bare_.size())).first->second;
  tokens_.push_back(token);
  return at->second;
}

int64_t Lowering::copy(int64_t parent, int64_t token) {
  const auto& original = tokens_[static_cast<size_t>(token)];
  // It stands there already; but what goes on from the middle of mixed tokens would cut them.
  if (original.parent == parent && !is_solid(original)) return token;
  return step({parent, original.id, -1, 0, 0, original.copied >= 0 ? original.copied : token, 0});
}

void Lowering::add_segment(NodeId id) {
  const auto& node = graph_.nodes_[static_cast<size_t>(id)];
  const auto n = static_cast<int64_t>(node.tokens.size());
  const int64_t start = node.length - n;
  int64_t at = node.parent ? ends_[static_cast<size_t>(*node.parent)] : -1;
  const auto solid = solid_ranges(node.interventions, n);
  std::string last_names;
  int64_t number = 0;
  for (int64_t t = 0; t < n; ++t) {
    Range around{t, t + 1};  // what is one with this token
    for (const auto& range : solid)
      if (meet(range, around)) around = range;
    const bool is_solid = around.second - around.first > 1;
    std::string names = is_solid ? concat(around.first, ":") : "";
    std::vector<size_t> here;
    for (size_t i = 0; i < node.interventions.size(); ++i) {
      if (!meet(reach(node.interventions[i], n), around)) continue;
      here.push_back(i);
      names += concat(i, ",");
    }
    if (here.empty()) {
      number = 0;
    } else if (names != last_names) {
      std::vector<hooks::Intervention> done;
      std::vector<int64_t> ids;
      std::string identity;
      for (const size_t i : here) {
        auto intervention = node.interventions[i];
        auto effect = node.effects[i];
        if (is_solid || is_positional(intervention) || mixes_tokens(intervention)) {
          const auto [first, last] = reach(intervention, n);
          effect += concat("@", start, "+", first, "-", last);
          for (const int64_t position : intervention.positions) effect += concat(",", position);
        } else {
          intervention.first_position = 0;
          intervention.last_position = std::numeric_limits<int64_t>::max();
        }
        if (mixes_tokens(intervention))
          for (const int64_t token : node.tokens) effect += concat(" ", token);
        ids.push_back(
            intervention_numbers_.try_emplace(effect, static_cast<int64_t>(intervention_numbers_.size()) + 1)
                .first->second);
        identity += concat(ids.back(), ",");
        done.push_back(std::move(intervention));
      }
      const auto [found, is_new] =
          action_numbers_.try_emplace(identity, static_cast<int64_t>(actions_.size()));
      if (is_new) {
        actions_.push_back(std::move(done));
        action_ids_.push_back(std::move(ids));
      }
      number = found->second;
    }
    last_names = names;
    at = step({at, node.tokens[static_cast<size_t>(t)], node.model, number, 0, -1, t});
  }
  ends_[static_cast<size_t>(id)] = at;
}

void Lowering::add_splice(NodeId id) {
  const auto& node = graph_.nodes_[static_cast<size_t>(id)];
  const auto path = [&](NodeId of) {
    std::vector<int64_t> out;
    for (int64_t at = ends_[static_cast<size_t>(of)]; at >= 0; at = tokens_[static_cast<size_t>(at)].parent)
      out.push_back(at);
    std::reverse(out.begin(), out.end());
    return out;
  };
  const auto target = path(*node.parent), source = path(node.source);
  int64_t at = -1;
  for (int64_t t = 0; t < node.length; ++t)
    at = copy(at, (node.first <= t && t < node.last ? source : target)[static_cast<size_t>(t)]);
  ends_[static_cast<size_t>(id)] = at;
}

/// Cuts the sequences into pieces: after every segment, where sequences part, and where what is done to them changes.
void Lowering::cut() {
  cut_after_.assign(bare_.size(), false);
  std::vector<int64_t> child(bare_.size(), -1);  // of each bare token, the one that was seen
  for (const auto& token : tokens_) {
    if (token.parent < 0) continue;
    const auto& parent = tokens_[static_cast<size_t>(token.parent)];
    const auto bare = static_cast<size_t>(parent.bare);
    if (child[bare] >= 0 && child[bare] != token.bare) cut_after_[bare] = true;
    child[bare] = token.bare;
    if (token.actions != parent.actions || token.model != parent.model) cut_after_[bare] = true;
  }
  for (const int64_t end : ends_)
    if (end >= 0) cut_after_[static_cast<size_t>(tokens_[static_cast<size_t>(end)].bare)] = true;

  piece_of_.assign(tokens_.size(), -1);
  place_in_.assign(tokens_.size(), 0);
  for (size_t t = 0; t < tokens_.size(); ++t) {
    const auto& token = tokens_[t];
    const auto parent = static_cast<size_t>(token.parent);
    bool goes_on = token.parent >= 0 && !cut_after_[static_cast<size_t>(tokens_[parent].bare)];
    if (goes_on && token.copied >= 0) {
      const auto now = static_cast<size_t>(token.copied),
                 before = static_cast<size_t>(tokens_[parent].copied);
      goes_on = piece_of_[now] == piece_of_[before] && place_in_[now] == place_in_[before] + 1;
    }
    if (goes_on) {
      piece_of_[t] = piece_of_[parent];
      place_in_[t] = place_in_[parent] + 1;
    } else {
      engine::Piece piece;
      piece.parent = token.parent < 0 ? -1 : piece_of_[parent];
      piece.model = std::max<int64_t>(token.model, 0);
      piece.content = token.bare;
      piece.interventions = actions_[static_cast<size_t>(token.actions)];
      piece.intervention_ids = action_ids_[static_cast<size_t>(token.actions)];
      piece.offset = token.position;
      if (token.copied >= 0) {
        piece.copied = piece_of_[static_cast<size_t>(token.copied)];
        piece.copied_first = place_in_[static_cast<size_t>(token.copied)];
      }
      piece_of_[t] = static_cast<int64_t>(pieces.size());
      pieces.push_back(std::move(piece));
    }
    pieces[static_cast<size_t>(piece_of_[t])].tokens.push_back(token.id);
  }
}

void Lowering::add_captures() {
  parts_of_.resize(graph_.reads_.size());
  for (size_t r = 0; r < graph_.reads_.size(); ++r) {
    const auto& [id, read] = graph_.reads_[r];
    const auto& node = graph_.nodes_[static_cast<size_t>(id)];
    engine::Capture capture{read, 0, static_cast<int64_t>(r)};
    capture.positions.clear();
    if (read.what == Read::What::cache) {
      capture.piece = piece_of_[static_cast<size_t>(ends_[static_cast<size_t>(id)])];
      parts_of_[r].emplace_back(static_cast<int64_t>(captures.size()), 0);
      captures.push_back(std::move(capture));
      continue;
    }
    std::vector<int64_t> path;  // the segment's tokens, last first
    for (int64_t at = ends_[static_cast<size_t>(id)]; path.size() < node.tokens.size();
         at = tokens_[static_cast<size_t>(at)].parent)
      path.push_back(at);
    const size_t first_capture = captures.size();
    for (const int64_t position : read.positions) {
      const auto token = static_cast<size_t>(path[path.size() - 1 - static_cast<size_t>(position)]);
      size_t c = first_capture;
      while (c < captures.size() && captures[c].piece != piece_of_[token]) ++c;
      if (c == captures.size()) {
        capture.piece = piece_of_[token];
        captures.push_back(capture);
      }
      parts_of_[r].emplace_back(static_cast<int64_t>(c), static_cast<int64_t>(captures[c].positions.size()));
      captures[c].positions.push_back(place_in_[token]);
    }
  }
}

engine::Captured Lowering::gather(ReadId read,
                                  std::vector<std::pair<int64_t, engine::Captured>> parts) const {
  if (parts.size() == 1) return std::move(parts.front().second);
  std::vector<torch::Tensor> rows;
  for (const auto& [capture, at] : parts_of_[static_cast<size_t>(read)])
    for (const auto& [c, captured] : parts)
      if (c == capture) rows.push_back(captured.values[at]);
  return {torch::stack(rows), {}};
}

}  // namespace introspect::graph
