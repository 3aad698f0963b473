#include "experiments/experiment_graph.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

#include "introspect/steering/residual_norms.h"

#include "experiments/drawn.h"

namespace introspect::experiments {
namespace {

using graph::NodeId;
using GraphRead = graph::Read;

Ids slice(const Ids& ids, int64_t first, int64_t last) {
  return {ids.begin() + first, ids.begin() + last};
}

/// What each direction is multiplied by.
std::map<int64_t, double> factors(const Scene& scene, const Injection& injection, StrengthUnit unit,
                                  const Measured& measured) {
  std::map<int64_t, double> out;
  for (const auto& [layer, direction] : injection.directions) {
    out[layer] = injection.strength * injection.factor;
    if (unit == StrengthUnit::absolute) continue;
    const auto length = direction.norm().item<double>();
    if (length > 0) out[layer] *= measured.norms.at(&scene).at(layer) / length;
  }
  return out;
}

}  // namespace

Directions scaled(const Scene& scene, const Injection& injection, StrengthUnit unit,
                  const Measured& measured) {
  auto out = injection.directions;
  const auto by = factors(scene, injection, unit, measured);
  for (auto& [layer, direction] : out) direction = direction * by.at(layer);
  return out;
}

std::map<int64_t, double> added_lengths(const Scene& scene, const Injection& injection, StrengthUnit unit,
                                        const Measured& measured) {
  auto out = factors(scene, injection, unit, measured);
  for (auto& [layer, length] : out)
    length = std::abs(length) * injection.directions.at(layer).norm().item<double>();
  return out;
}

ExperimentGraph::ExperimentGraph(graph::Graph& graph, const graph::ModelPtr& model, const Protocol& protocol,
                                 const Design& design, StrengthUnit unit, Measured& measured)
    : model_(model), protocol_(protocol), design_(design), unit_(unit), measured_(measured), graph_(graph) {}

// ---- nodes --------------------------------------------------------------------------------------------------------

std::optional<NodeId> ExperimentGraph::parent_of_span(const Scene& scene) {
  if (scene.before.empty()) return std::nullopt;
  const auto [node, is_new] = before_.try_emplace(&scene, -1);
  if (is_new) node->second = graph_.segment(model_, scene.before);
  return node->second;
}

/// One intervention for each block, so that ranges which begin alike are alike there.
std::vector<hooks::Intervention> ExperimentGraph::interventions(const Scene& scene,
                                                                const Injection& injection,
                                                                std::pair<int64_t, int64_t> range) const {
  std::vector<hooks::Intervention> out;
  if (protocol_.inject == Inject::noise) {
    for (const auto& [layer, length] : added_lengths(scene, injection, unit_, measured_))
      out.emplace_back().values[layer] = drawn_noise(injection, layer, range, model_->cfg().d_model, length);
    return out;
  }
  for (const auto& [layer, factor] : factors(scene, injection, unit_, measured_)) {
    auto& one = out.emplace_back();
    one.values[layer] = injection.directions.at(layer);
    one.strength = factor;
  }
  const auto for_each_block = [&](const char* op, double strength, const auto& operand_of) {
    for (int64_t layer = injection.first_layer; layer <= injection.last_layer; ++layer) {
      auto& one = out.emplace_back();
      one.op = op;
      one.values[layer] = operand_of(layer);
      one.strength = strength;
    }
  };
  if (replaces_activations(protocol_.inject)) {
    const auto& other = measured_.others.at({&scene, injection.other});
    for_each_block("interpolate", injection.strength, [&](int64_t layer) -> hooks::Operands {
      return other.at(layer).narrow(0, range.first, range.second - range.first).unsqueeze(0);
    });
  } else if (protocol_.inject == Inject::dropout) {
    for_each_block("multiply", 1.0, [&](int64_t layer) -> hooks::Operands {
      return drawn_dropout(injection, layer, range, model_->cfg().d_model, injection.strength);
    });
  } else if (protocol_.inject == Inject::scale) {
    for_each_block("scale", 1.0 + injection.strength, [](int64_t) { return hooks::Operands(); });
  }
  return out;
}

const ExperimentGraph::Prefilled& ExperimentGraph::prefill(const Scene& scene, const Injection* injection) {
  const auto [found, is_new] = prefilled_.try_emplace({&scene, injection});
  auto& [prefilled_end, injected] = found->second;
  if (!is_new) return found->second;
  auto at = parent_of_span(scene);
  if (!injection || protocol_.inject == Inject::tokens) {
    const auto& ids = injection ? scene.others.at(injection->other) : scene.injected;
    at = graph_.segment(model_, ids, at);
    injected = {{*at, static_cast<int64_t>(ids.size())}};
  } else {
    const auto& spans_model = protocol_.inject == Inject::model ? design_.prefill_model : model_;
    const auto end = static_cast<int64_t>(scene.injected.size());
    int64_t done = 0;
    for (const auto& [first, last] : reached(scene, *injection)) {
      if (done < first) at = graph_.segment(model_, slice(scene.injected, done, first), at);
      at = graph_.segment(spans_model, slice(scene.injected, first, last), at,
                          interventions(scene, *injection, {first, last}));
      injected.emplace_back(*at, last - first);
      done = last;
    }
    if (done < end) at = graph_.segment(model_, slice(scene.injected, done, end), at);
  }
  prefilled_end = *at;
  return found->second;
}

NodeId ExperimentGraph::ask(const Scene& scene, const Ask& ask, const Injection* injection) {
  const auto prefilled = prefill(scene, injection).end;
  if (ask.after.empty()) return prefilled;
  const bool steered = ask.keeps_steering && injection && adds_vectors(protocol_.inject);
  return graph_.segment(model_, ask.after, prefilled,
                        steered ? interventions(scene, *injection, {}) : std::vector<hooks::Intervention>{});
}

// ---- readings -----------------------------------------------------------------------------------------------------

void ExperimentGraph::read(NodeId node, GraphRead read, Use use) {
  if (use.what == Use::What::need || use.what == Use::What::cache) ++parts_[use.place].n_missing;
  if (use.what == Use::What::base) ++measured_.base[{use.scene, use.ask}].n_missing;
  uses_[graph_.read(node, std::move(read))].push_back(std::move(use));
}

void ExperimentGraph::read_need(const Wanted& wanted, const Need& need, Use use) {
  const auto& [scene, ask, injection, key] = wanted;
  if (need.at_injected) return read_injected(prefill(*scene, injection), need, std::move(use));
  auto node = this->ask(*scene, *ask, injection);
  if (!need.after.empty()) {
    const bool steered = ask->keeps_steering && injection && adds_vectors(protocol_.inject);
    node =
        graph_.segment(model_, need.after, node,
                       steered ? interventions(*scene, *injection, {}) : std::vector<hooks::Intervention>{});
  }
  auto what = need.read;
  if (what.what == GraphRead::What::attention) {
    what.first_key = scene->span_begin();
    what.last_key = graph_.length(prefill(*scene, injection).end);
  }
  read(node, std::move(what), std::move(use));
}

void ExperimentGraph::read_injected(const Prefilled& prefilled, const Need& need, Use use) {
  for (const auto& [node, n] : prefilled.injected) use.n_rows += n;
  for (const auto& [node, n] : prefilled.injected) {
    auto what = need.read;
    what.positions.resize(static_cast<size_t>(n));
    std::iota(what.positions.begin(), what.positions.end(), int64_t{0});
    read(node, std::move(what), use);
    use.first_row += n;
  }
}

void ExperimentGraph::want(const Wanted& wanted) {
  const auto place = wanted_.size();
  wanted_.push_back(wanted);
  parts_.emplace_back();
  const auto& reads = design_.reads(*wanted.ask);
  const auto& needs = reads.needs.steered();
  parts_.back().values.resize(needs.size());
  const auto of_kind = [&](bool is_after) {
    for (size_t i = 0; i < needs.size(); ++i)
      if (needs[i].after.empty() != is_after) read_need(wanted, needs[i], {Use::What::need, place, i});
  };
  of_kind(/*is_after=*/false);
  if (reads.samples) {
    GraphRead cache;
    cache.what = GraphRead::What::cache;
    read(ask(*wanted.scene, *wanted.ask, wanted.injection), cache, {Use::What::cache, place});
  }
  of_kind(/*is_after=*/true);
}

void ExperimentGraph::measure_norms(const Scene& scene) {
  for (int64_t layer = 0; layer < model_->cfg().n_layers; ++layer) {
    GraphRead read;
    read.layers = {layer};
    read.positions.clear();
    for (const auto& [first, last] : scene.spans)
      for (int64_t t = first; t < last; ++t) read.positions.push_back(t);
    // Without the conversation's first token, see run_experiment.
    if (scene.before.empty() && read.positions.size() > 1 && read.positions.front() == 0)
      read.positions.erase(read.positions.begin());
    Use use{Use::What::norm};
    use.scene = &scene;
    use.layer = layer;
    this->read(prefill(scene, nullptr).end, std::move(read), std::move(use));
  }
}

void ExperimentGraph::measure_other(const Scene& scene, const std::string& other) {
  const auto node = graph_.segment(model_, scene.others.at(other), parent_of_span(scene));
  for (const auto layer : design_.injected_layers()) {
    GraphRead read;
    read.layers = {layer};
    read.positions.resize(scene.others.at(other).size());
    std::iota(read.positions.begin(), read.positions.end(), int64_t{0});
    Use use{Use::What::other};
    use.scene = &scene;
    use.other = other;
    use.layer = layer;
    this->read(node, std::move(read), std::move(use));
  }
}

void ExperimentGraph::measure_base(const Scene& scene, const Ask& ask) {
  const auto& needs = design_.reads(ask).needs.unsteered();
  if (needs.empty() || has_base(scene, ask) || !bases_.insert({&scene, &ask}).second) return;
  measured_.base[{&scene, &ask}] = {std::vector<torch::Tensor>(needs.size()), {}, 0};
  for (size_t i = 0; i < needs.size(); ++i) {
    Use use{Use::What::base};
    use.number = i;
    use.scene = &scene;
    use.ask = &ask;
    read_need({&scene, &ask, nullptr, {}}, needs[i], std::move(use));
  }
}

/// [1, L, H, keys] -> [L, H]: the sum over the tokens of the injected spans.
torch::Tensor ExperimentGraph::attention_to_spans(const Scene& scene, const Injection* injection,
                                                  const torch::Tensor& values) const {
  const auto attention_LHS = values[0];
  if (injection && protocol_.inject == Inject::tokens) return attention_LHS.sum(-1);
  auto out = at::zeros({attention_LHS.size(0), attention_LHS.size(1)}, attention_LHS.options());
  for (const auto& [first, last] : scene.spans) out += attention_LHS.narrow(2, first, last - first).sum(-1);
  return out;
}

void ExperimentGraph::take(const Use& use, const engine::Captured& captured) {
  const auto value_of = [&](const Need& need, const Scene& scene, const Injection* injection) {
    const bool is_attention = need.read.what == GraphRead::What::attention;
    return is_attention ? attention_to_spans(scene, injection, captured.values) : captured.values;
  };
  switch (use.what) {
    case Use::What::norm:
      measured_.norms[use.scene][use.layer] = steering::median_norm(captured.values);
      return;
    case Use::What::other:
      measured_.others[{use.scene, use.other}][use.layer] = captured.values.select(1, 0).clone();
      return;
    case Use::What::base: {
      auto& base = measured_.base[{use.scene, use.ask}];
      const auto& need = design_.reads(*use.ask).needs.unsteered()[use.number];
      base.values[use.number] = value_of(need, *use.scene, nullptr).clone();
      --base.n_missing;
      return;
    }
    case Use::What::need: {
      const auto& [scene, ask, injection, key] = wanted_[use.place];
      auto& value = parts_[use.place].values[use.number];
      const auto n = captured.values.defined() ? captured.values.size(0) : 0;
      if (use.n_rows == 0 || use.n_rows == n) {
        value = value_of(design_.reads(*ask).needs.steered()[use.number], *scene, injection);
        break;
      }
      if (!value.defined()) {
        auto shape = captured.values.sizes().vec();
        shape[0] = use.n_rows;
        value = at::empty(shape, captured.values.options());
      }
      value.narrow(0, use.first_row, n).copy_(captured.values);
      break;
    }
    case Use::What::cache:
      parts_[use.place].cache = *captured.cache;
      break;
  }
  if (--parts_[use.place].n_missing == 0) complete_.push_back(use.place);
}

bool ExperimentGraph::has_base(const Scene& scene, const Ask& ask) const {
  const auto base = measured_.base.find({&scene, &ask});
  return base != measured_.base.end() && base->second.n_missing == 0;
}

std::vector<std::pair<size_t, Parts>> ExperimentGraph::take(
    const std::vector<std::pair<graph::ReadId, engine::Captured>>& readings) {
  for (const auto& [id, captured] : readings)
    if (const auto uses = uses_.find(id); uses != uses_.end())
      for (const auto& use : uses->second) take(use, captured);
  const auto is_ready = [&](size_t place) {
    const auto& [scene, ask, injection, key] = wanted_[place];
    return !injection || design_.reads(*ask).needs.unsteered().empty() || has_base(*scene, *ask);
  };
  const auto waiting = std::stable_partition(complete_.begin(), complete_.end(), is_ready);
  std::vector<std::pair<size_t, Parts>> out;
  for (auto it = complete_.begin(); it != waiting; ++it) out.emplace_back(*it, std::move(parts_[*it]));
  complete_.erase(complete_.begin(), waiting);
  return out;
}

}  // namespace introspect::experiments
