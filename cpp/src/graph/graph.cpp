#include "introspect/graph/graph.h"

#include <algorithm>
#include <cstring>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/hooks/intervention_json.h"
#include "introspect/models/place_operands.h"

#include "engine/run_plan.h"
#include "graph/lowering.h"

namespace introspect::graph {

namespace {

template <typename Range>
std::string joined(const Range& list) {
  std::string out;
  for (const auto& item : list) out += concat(item, ",");
  return out;
}

void check_model(const models::Model& first, const models::Model& model) {
  const auto &a = first.cfg(), &b = model.cfg();
  bool same_devices = first.device() == model.device();
  for (int64_t layer = 0; same_devices && layer < std::min(a.n_layers, b.n_layers); ++layer)
    same_devices = first.device(layer) == model.device(layer);
  check<ShapeError>(
      a.n_layers == b.n_layers && a.n_key_value_heads == b.n_key_value_heads && a.d_head == b.d_head &&
          a.d_model == b.d_model && a.n_heads == b.n_heads && first.dtype() == model.dtype() && same_devices,
      "Graph::segment: the models of a graph must have the same shape, dtype and device; '", a.model_name,
      "' has ", a.n_layers, " layers, ", a.n_key_value_heads, " key heads of ", a.d_head, ", d_model ",
      a.d_model, ", ", first.dtype(), "; '", b.model_name, "' has ", b.n_layers, " layers, ",
      b.n_key_value_heads, " key heads of ", b.d_head, ", d_model ", b.d_model, ", ", model.dtype());
}

void check_intervention(const hooks::Intervention& i, const models::Model& model, int64_t n_tokens) {
  hooks::validate(i, models::hook_points(model.cfg()));
  check<ConfigError>(i.point <= hooks::Point::kResidPost || i.point == hooks::Point::kEmbed,
                     "Graph::segment: interventions act in blocks or on hook_embed, got ",
                     hooks::point_name(i.point));
  check<ConfigError>(!i.source || *i.source <= hooks::Point::kResidPost || *i.source == hooks::Point::kEmbed,
                     "Graph::segment: interventions read in blocks or at hook_embed, got the source ",
                     i.source ? hooks::point_name(*i.source) : "");
  check<std::invalid_argument>(
      i.rows.empty() || i.rows == std::vector<int64_t>{0},
      "Graph::segment: a segment is one row; for several interventions make several ", "segments, got ",
      i.rows.size(), " rows");
  check<ConfigError>(
      i.text.phase == hooks::Phase::kAll && i.text.after.empty(),
      "Graph::segment: a segment knows its own tokens only, not where a prompt ends or what came before; "
      "give the intervention positions");
  for (const int64_t position : i.positions)
    check<std::out_of_range>(position < n_tokens, "Graph::segment: positions of this segment are 0 to ",
                             n_tokens - 1, ", got ", position);
  check<std::out_of_range>(i.first_position < n_tokens, "Graph::segment: positions of this segment are 0 to ",
                           n_tokens - 1, ", got ", i.first_position);
}

/// One intervention a layer, in the order of the layers: what is equal in the first ones is then seen to be equal there.
std::vector<hooks::Intervention> by_layer(const std::vector<hooks::Intervention>& interventions) {
  std::vector<hooks::Intervention> out;
  for (const auto& i : interventions) {
    if (hooks::is_identity(i)) continue;
    for (const auto& value : i.values) {
      out.push_back(i);
      out.back().values = {value};
    }
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) {
    return a.values.begin()->first < b.values.begin()->first;
  });
  return out;
}

}  // namespace

const Graph::Node& Graph::node(NodeId id) const {
  check<std::out_of_range>(id >= 0 && id < size(), "Graph: nodes are 0 to ", size() - 1, ", got ", id);
  return nodes_[static_cast<size_t>(id)];
}

int64_t Graph::place_of(const ModelPtr& model) {
  check<std::invalid_argument>(model != nullptr, "Graph::segment: a model is needed");
  const auto found = std::find(models_.begin(), models_.end(), model);
  if (found != models_.end()) return found - models_.begin();
  if (!models_.empty()) check_model(*models_.front(), *model);
  models_.push_back(model);
  return static_cast<int64_t>(models_.size()) - 1;
}

/// Hash and copy of an operand. Memory that was hashed before is compared with its copy, which is much faster than another
/// hash, and sees whatever has been written there since.
const Graph::OwnOperand& Graph::own_operand(const torch::Tensor& tensor) {
  const bool is_plain = tensor.defined() && tensor.layout() == torch::kStrided && tensor.is_cpu() &&
                        tensor.is_contiguous() && !tensor.is_neg() && !tensor.is_conj();
  const void* const at = is_plain ? tensor.const_data_ptr() : nullptr;
  if (const auto seen = operand_at_.find(at); at != nullptr && seen != operand_at_.end()) {
    const auto& found = *operands_.find(seen->second);
    const auto& own = found.second;
    if (own.scalar_type() == tensor.scalar_type() && own.sizes() == tensor.sizes() &&
        std::memcmp(own.const_data_ptr(), at, tensor.nbytes()) == 0)
      return found;
  }
  const auto [own, is_new] = operands_.try_emplace(hooks::tensor_hash(tensor));
  if (is_new) own->second = tensor.detach().clone(at::MemoryFormat::Contiguous);
  if (at != nullptr && own->second.is_cpu()) operand_at_[at] = own->first;
  return *own;
}

/// What an intervention does, wherever it does it; its operands become the graph's own, which nobody writes into.
std::string Graph::take_effect(hooks::Intervention& i) {
  std::string out = concat(i.op, "|", hooks::point_name(i.point), "|");
  const auto append = [&](double number) {
    out.append(reinterpret_cast<const char*>(&number), sizeof number);
  };
  append(i.strength);
  for (const auto& [name, parameter] : i.parameters) {
    out += concat("|", name, "=");
    append(parameter);
  }
  out += concat("|", joined(i.heads), "|");
  for (auto& [layer, operands] : i.values) {
    out += concat(layer, ":");
    hooks::Operands::Tensors held;
    for (const auto& [name, tensor] : operands) {
      const auto& [hash, own] = own_operand(tensor);
      held[name] = own;
      out += name == "v" ? hash : concat(name, "=", hash, ";");
    }
    operands = std::move(held);
    out += ",";
    if (!i.source) continue;
    const auto [point, from] = hooks::source_site(i, layer);
    out += concat("from ", hooks::point_name(point), " ", from, ",");
  }
  return out;
}

NodeId Graph::insert(Node node, const std::string& content) {
  const std::string parent = node.parent ? this->node(*node.parent).hash : "";
  node.hash = sha256_hex(concat(parent, "\n", content));
  const auto [at, is_new] = by_hash_.try_emplace(node.hash, size());
  if (is_new) nodes_.push_back(std::move(node));
  return at->second;
}

NodeId Graph::segment(const ModelPtr& model, const std::vector<int64_t>& tokens, std::optional<NodeId> parent,
                      const std::vector<hooks::Intervention>& interventions) {
  const auto use = user_.enter("Graph::segment");
  const auto place = place_of(model);
  const auto& cfg = model->cfg();
  check<std::invalid_argument>(!tokens.empty(), "Graph::segment: at least one token is needed, got none");
  for (const int64_t token : tokens)
    check<std::out_of_range>(token >= 0 && token < cfg.d_vocab, "Graph::segment: token ids must be 0 to ",
                             cfg.d_vocab - 1, ", got ", token);
  Node node;
  node.model = place;
  node.parent = parent;
  node.tokens = tokens;
  node.length = (parent ? length(*parent) : 0) + static_cast<int64_t>(tokens.size());
  check<ShapeError>(node.length <= cfg.n_ctx, "Graph::segment: a sequence must fit into the model's ",
                    cfg.n_ctx, " positions, got ", node.length);
  std::string content = concat(model->hash(), "|", joined(tokens), "|");
  const hooks::Text text{torch::tensor(tokens, torch::kLong).unsqueeze(0), 0, {}, {}};
  std::vector<hooks::Intervention> resolved;
  for (const auto& given : interventions) {
    check_intervention(given, *model, static_cast<int64_t>(tokens.size()));
    if (given.text.empty()) {
      resolved.push_back(given);
    } else {
      const auto parts = hooks::resolve(given, text);
      resolved.insert(resolved.end(), parts.begin(), parts.end());
    }
  }
  for (auto& i : by_layer(resolved)) {
    node.effects.push_back(take_effect(i));
    content += concat(node.effects.back(), "|", i.first_position, ",", i.last_position, "|",
                      joined(i.positions), ";");
    node.interventions.push_back(std::move(i));
  }
  // Two models may be of one checkpoint: they are told apart, as their keys may differ.
  const auto is_twin = [&](const ModelPtr& other) { return other->hash() == model->hash(); };
  const auto twins = std::count_if(models_.begin(), models_.begin() + place, is_twin);
  return insert(std::move(node), concat(content, "|", twins));
}

NodeId Graph::splice(NodeId target, int64_t first, int64_t last, NodeId source) {
  const auto use = user_.enter("Graph::splice");
  check<std::out_of_range>(first >= 0 && first < last && last <= length(target) && last <= length(source),
                           "Graph::splice: positions [first, last) must lie in both sequences, of ",
                           length(target), " and ", length(source), " tokens, got ", first, " to ", last);
  const auto mine = tokens(target), theirs = tokens(source);
  check<std::invalid_argument>(std::equal(mine.begin() + first, mine.begin() + last, theirs.begin() + first),
                               "Graph::splice: positions ", first, " to ", last,
                               " must hold the same tokens in both sequences");
  Node node;
  node.parent = target;
  node.source = source;
  node.first = first;
  node.last = last;
  node.length = length(target);
  return insert(std::move(node), concat("splice|", first, "|", last, "|", this->node(source).hash));
}

ReadId Graph::read(NodeId id, Read read) {
  const auto use = user_.enter("Graph::read");
  const auto& node = this->node(id);
  const auto& model = *models_[static_cast<size_t>(std::max<int64_t>(node.model, 0))];
  const auto& cfg = model.cfg();
  const auto n_tokens = static_cast<int64_t>(node.tokens.size());
  check<std::invalid_argument>(
      node.model >= 0 || read.what == Read::What::cache,
      "Graph::read: a splice has keys and values only: read its cache, or a segment after it");
  if (read.what == Read::What::cache) {
    read = {};
    read.what = Read::What::cache;
    read.positions = {};
  } else {
    check<std::invalid_argument>(!read.positions.empty(),
                                 "Graph::read: at least one position is needed, got none");
    for (auto& position : read.positions) {
      check<std::out_of_range>(position >= -n_tokens && position < n_tokens,
                               "Graph::read: positions of this segment are ", -n_tokens, " to ", n_tokens - 1,
                               ", got ", position);
      if (position < 0) position += n_tokens;
    }
    const bool in_block = static_cast<int>(read.point) < hooks::kBlockPoints;
    if (read.what == Read::What::attention) {
      for (const int64_t head : read.heads)
        check<std::out_of_range>(head >= 0 && head < cfg.n_heads, "Graph::read: heads are 0 to ",
                                 cfg.n_heads - 1, ", got ", head);
      read.last_key = std::min(read.last_key, node.length);
      check<std::out_of_range>(read.first_key >= 0 && read.first_key < read.last_key,
                               "Graph::read: keys [first, last) must be among the sequence's ", node.length,
                               " positions, got ", read.first_key, " to ", read.last_key);
    } else {
      check<std::invalid_argument>(hooks::position_axis(read.point) == 1,
                                   "Graph::read: for scores and patterns ask for attention");
      check<HookError>(in_block || read.point == hooks::Point::kEmbed,
                       "Graph::read: activations are read in blocks or at hook_embed, got ",
                       hooks::point_name(read.point));
    }
    if (read.layers.empty() && !in_block) read.layers = {-1};
    if (read.layers.empty())
      for (int64_t layer = 0; layer < cfg.n_layers; ++layer) read.layers.push_back(layer);
    const auto points = models::hook_points(cfg);
    for (const int64_t layer : read.layers) {
      check<std::out_of_range>(in_block ? layer >= 0 && layer < cfg.n_layers : layer == -1,
                               "Graph::read: layers of ", hooks::point_name(read.point), " are ",
                               in_block ? concat("0 to ", cfg.n_layers - 1) : "-1", ", got ", layer);
      if (read.what == Read::What::activation) points.parse(hooks::hook_name({read.point, layer}));
    }
  }
  const auto key =
      concat(id, "|", static_cast<int>(read.what), "|", joined(read.positions), "|", joined(read.layers), "|",
             static_cast<int>(read.point), "|", joined(read.heads), "|", read.first_key, "|", read.last_key);
  const auto [at, is_new] = read_by_hash_.try_emplace(key, n_reads());
  if (is_new) reads_.emplace_back(id, std::move(read));
  return at->second;
}

int64_t Graph::size() const {
  const auto use = user_.enter("Graph::size");
  return static_cast<int64_t>(nodes_.size());
}

int64_t Graph::n_reads() const {
  const auto use = user_.enter("Graph::n_reads");
  return static_cast<int64_t>(reads_.size());
}

int64_t Graph::length(NodeId id) const {
  const auto use = user_.enter("Graph::length");
  return node(id).length;
}

std::vector<int64_t> Graph::tokens(NodeId id) const {
  const auto use = user_.enter("Graph::tokens");
  std::vector<int64_t> out;
  for (std::optional<NodeId> at = id; at; at = node(*at).parent)
    out.insert(out.begin(), node(*at).tokens.begin(), node(*at).tokens.end());
  return out;
}

std::string Graph::hash(NodeId id) const {
  const auto use = user_.enter("Graph::hash");
  return node(id).hash;
}

namespace {

engine::Plan make_plan(const Lowering& lowered, const std::vector<ModelPtr>& models,
                       const RunOptions& options) {
  check<std::invalid_argument>(!lowered.captures.empty(), "Graph::run: there is nothing to read");
  const auto& model = *models.front();
  // What check_model does not ask to be equal counts as the largest of all models.
  auto cfg = model.cfg();
  for (const auto& other : models) cfg.d_mlp = std::max(cfg.d_mlp, other->cfg().d_mlp);
  auto pieces = lowered.pieces;
  models::OperandPlacer place(model);
  // Those within blocks are checked again by each pass, by the host.
  for (auto& piece : pieces)
    for (auto& intervention : piece.interventions)
      if (engine::between_blocks(intervention.point)) intervention = place(std::move(intervention));
  return engine::Plan(std::move(pieces), lowered.captures, cfg, model.dtype(), model.device(),
                      {options.memory_budget, options.most_rows, options.most_token_layers,
                       options.read_token_layers, options.least_reads});
}

/// The plan's summary, with what is read of models whose blocks stay in their files.
engine::PlanSummary summary_of(const engine::Plan& plan, const std::vector<ModelPtr>& models) {
  auto out = plan.summary();
  if (std::all_of(models.begin(), models.end(), [](const auto& model) { return model->keeps_blocks(); }))
    return out;
  const auto runs = plan.block_runs(models.size());
  for (size_t m = 0; m < models.size(); ++m)
    for (int64_t layer = 0; layer < plan.n_layers() && !models[m]->keeps_blocks(); ++layer) {
      const auto n = runs[m][static_cast<size_t>(layer)];
      out.blocks_read += n;
      out.bytes_read += n * models[m]->bytes_read(layer);
    }
  return out;
}

}  // namespace

engine::PlanSummary Graph::plan(const RunOptions& options) const {
  const auto use = user_.enter("Graph::plan");
  return summary_of(make_plan(Lowering(*this), models_, options), models_);
}

void Graph::run(const RunOptions& options,
                const std::function<void(std::vector<std::pair<ReadId, engine::Captured>>)>& on_read) const {
  const auto use = user_.enter("Graph::run");
  const Lowering lowered(*this);
  const auto models = models_;  // `on_read` may add to the graph
  const auto plan = make_plan(lowered, models, options);
  if (options.on_plan) options.on_plan(summary_of(plan, models));
  const auto hand_out = [&](std::vector<std::pair<int64_t, engine::Captured>> parts) {
    std::vector<std::pair<ReadId, engine::Captured>> out;
    // All parts of a reading are in one pass, one after another.
    for (size_t first = 0, last = 0; first < parts.size(); first = last) {
      const auto group = plan.captures()[static_cast<size_t>(parts[first].first)].group;
      std::vector<std::pair<int64_t, engine::Captured>> of_read;
      for (; last < parts.size() && plan.captures()[static_cast<size_t>(parts[last].first)].group == group;
           ++last)
        of_read.push_back(std::move(parts[last]));
      out.emplace_back(group, lowered.gather(group, std::move(of_read)));
    }
    on_read(std::move(out));
  };
  engine::run_plan(plan, models, hand_out, options.progress);
}

std::vector<engine::Captured> Graph::run(const RunOptions& options) const {
  std::vector<engine::Captured> out(reads_.size());
  run(options, [&](std::vector<std::pair<ReadId, engine::Captured>> readings) {
    for (auto& [id, captured] : readings) out[static_cast<size_t>(id)] = std::move(captured);
  });
  return out;
}

}  // namespace introspect::graph
