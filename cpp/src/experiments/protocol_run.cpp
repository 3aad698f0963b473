#include "experiments/protocol_run.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <unordered_set>

#include <ATen/Parallel.h>
#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "experiments/finite.h"
#include "experiments/reader.h"
#include "experiments/reading_check.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/weights_held.h"
#include "introspect/version.h"

namespace introspect::experiments {

namespace {

// Of what is drawn for the injections of one graph.
constexpr int64_t kMostDrawnBytes = int64_t{1} << 30;

/// A number in full; short ones as keys have always had them.
std::string exactly(double number) {
  const auto text = concat(number);
  return std::stod(text) == number ? text : nlohmann::json(number).dump();
}

std::string lengths_hash(const std::map<int64_t, double>& lengths) {
  Sha256 hash;
  for (const auto& [layer, length] : lengths) hash.update(concat(layer, ":")).update(&length, sizeof(length));
  return hash.hex();
}

}  // namespace

int64_t graph_budget(int64_t memory_budget, bool samples) {
  return samples ? memory_budget / 2 : memory_budget;
}

ProtocolRun::ProtocolRun(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
                         const ExperimentOptions& options)
    : model_(model),
      protocol_(protocol),
      options_(options),
      design_(make_design(*model, protocol, vectors, options)),
      origin_{model->cfg().model_name,
              model->hash(),
              models::precision_name(*model),
              model->device().str(),
              protocol.name,
              protocol.hash(),
              options.seed,
              to_string(*options.strength_unit),
              INTROSPECT_VERSION,
              INTROSPECT_BUILT_WITH_TORCH},
      cell_keys_(*model, design_) {
  check_budget();
  count();
}

int64_t ProtocolRun::n_asks() const {
  int64_t out = 0;
  for (const auto& scene : design_.scenes) out += static_cast<int64_t>(scene.asks.size());
  return out;
}

int64_t ProtocolRun::missing_tokens() const {
  int64_t out = 0;
  for (const auto& wanted : missing_) out += n_tokens(wanted);
  return out;
}

double ProtocolRun::logits_per_read() const {
  int64_t out = design_.of_own.compares ? 2 : 1;
  for (const auto& readout : design_.readouts) out += readout->prepared.n_logits;
  const auto n_reads = std::max<size_t>(1, design_.of_own.needs.steered().size());
  return static_cast<double>(out) / static_cast<double>(n_reads);
}

int64_t ProtocolRun::direction_bytes() const {
  std::unordered_set<const void*> seen;
  int64_t out = 0;
  for (const auto& injection : design_.injections)
    for (const auto& [layer, direction] : injection.directions)
      if (seen.insert(direction.unsafeGetTensorImpl()).second)
        out += static_cast<int64_t>(direction.nbytes());
  return out;
}

int64_t ProtocolRun::drawn_bytes(const Scene& scene, const Injection& injection) const {
  if (protocol_.inject != Inject::noise && protocol_.inject != Inject::dropout) return 0;
  int64_t tokens = 0;
  for (const auto& [first, last] : reached(scene, injection)) tokens += last - first;
  const auto blocks = injection.last_layer - injection.first_layer + 1;
  return tokens * blocks * model_->cfg().d_model * static_cast<int64_t>(sizeof(float));
}

void ProtocolRun::enter_first(graph::Graph& graph) {
  for (const auto& scene : design_.scenes)
    for (const auto& ask : scene.asks) want(scene, ask, nullptr);
  if (!needs_more_first()) return;
  auto& view = enter(graph);
  for (const auto* scene : unmeasured_) view.measure_norms(*scene);
  if (replaces_activations(protocol_.inject))
    for (const auto& scene : design_.scenes)
      for (const auto& [other, ids] : scene.others) view.measure_other(scene, other);
  for (const auto& wanted : std::exchange(missing_, {})) view.want(wanted);
}

void ProtocolRun::keep_first() {
  for (const auto* scene : unmeasured_) {
    for (const auto& [layer, norm] : measured_.norms.at(scene))
      if (!std::isfinite(norm))
        throw_not_finite(*model_, "run_experiment", protocol_, *scene, scene->asks.front());
    Cell cell{cell_keys_.norms(*scene), nlohmann::json(measured_.norms.at(scene)).dump()};
    cell.kind = "norms";
    if (options_.store) options_.store->put(cell, origin_);
  }
  if (options_.control_filter) filter_controls();
}

void ProtocolRun::stand_in() {
  for (const auto* scene : unmeasured_)
    for (int64_t layer = 0; layer < model_->cfg().n_layers; ++layer) measured_.norms[scene][layer] = 1.0;
  for (const auto& scene : design_.scenes)
    for (const auto& [name, ids] : scene.others) {
      const auto differs = static_cast<double>(measured_.others.size());
      auto& other = measured_.others[{&scene, name}];
      for (const auto layer : design_.injected_layers())
        other[layer] = at::full({static_cast<int64_t>(ids.size()), model_->cfg().d_model}, differs);
    }
}

void ProtocolRun::plan_injections() {
  for (const auto& injection : design_.injections)
    for (const auto& scene : design_.scenes) {
      if (!design_.is_steered(injection)) continue;
      added_[{&scene, &injection}] = added_hash(scene, injection);
      for (const auto& ask : scene.asks)
        if (dropped_.count(&ask) == 0) want(scene, ask, &injection);
    }
  std::reverse(missing_.begin(), missing_.end());  // they are taken from the end
}

void ProtocolRun::note_asked() const {
  std::vector<Cell> cells;
  const auto flush = [&] {
    options_.store->put_asked(cells, origin_);
    cells.clear();
  };
  const auto add = [&](const Scene& scene, const Ask& ask, const Injection* injection) {
    if (dropped_.count(&ask) > 0) return;
    const bool is_steered = injection && design_.is_steered(*injection);
    cells.push_back(
        make_cell({&scene, &ask, injection, keys_.at({&scene, &ask, is_steered ? injection : nullptr})}, {}));
    if (cells.size() == 10'000) flush();
  };
  for (const auto& scene : design_.scenes)
    for (const auto& ask : scene.asks) add(scene, ask, nullptr);
  for (const auto& injection : design_.injections)
    for (const auto& scene : design_.scenes)
      for (const auto& ask : scene.asks) add(scene, ask, &injection);
  flush();
}

void ProtocolRun::enter_next(graph::Graph& graph, int64_t& tokens, int64_t most_tokens) {
  if (is_complete() || tokens >= most_tokens) return;
  auto& view = enter(graph);
  int64_t drawn = 0;
  std::set<std::pair<const Scene*, const Injection*>> entered;
  for (; !missing_.empty() && tokens < most_tokens && drawn < kMostDrawnBytes; missing_.pop_back()) {
    const auto& wanted = missing_.back();
    if (wanted.injection && entered.insert({wanted.scene, wanted.injection}).second)
      drawn += drawn_bytes(*wanted.scene, *wanted.injection);
    if (wanted.injection) view.measure_base(*wanted.scene, *wanted.ask);
    view.want(wanted);
    tokens += n_tokens(wanted);
  }
}

void ProtocolRun::take(const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured,
                       const std::function<void()>& tell) {
  if (!view_) return;
  std::vector<ReadRow> given;
  auto complete = view_->take(captured);
  for (auto& [place, parts] : complete) {
    const auto& wanted = view_->wanted()[place];
    const auto base = measured_.base.find({wanted.scene, wanted.ask});
    const bool has_base = wanted.injection && base != measured_.base.end();
    given.push_back({wanted.scene, wanted.ask, wanted.injection, &parts, has_base ? &base->second : nullptr});
  }
  auto readings = read_out(*model_, design_, given);
  std::vector<Prompt> prompts;
  std::vector<size_t> prompted;  // readings whose text is sampled
  for (size_t i = 0; i < readings.size(); ++i) {
    const auto& wanted = view_->wanted()[complete[i].first];
    auto& parts = complete[i].second;
    if (readings[i].is_finite()) {
      if (!parts.cache) continue;
      prompted.push_back(i);
      prompts.push_back(prompt(wanted, std::move(*parts.cache), parts.values.front()[0][-1]));
    } else if (!wanted.injection) {
      throw_not_finite(*model_, "run_experiment", protocol_, *wanted.scene, *wanted.ask);
    }
  }
  const auto finish = [&](const std::vector<size_t>& rows) {
    std::vector<std::pair<const Wanted*, Reading>> finished;
    for (const size_t row : rows)
      finished.emplace_back(&view_->wanted()[complete[row].first], std::move(readings[row]));
    keep(std::move(finished));
    tell();
  };
  std::vector<size_t> without_text;
  for (size_t row = 0; row < readings.size(); ++row)
    if (!std::binary_search(prompted.begin(), prompted.end(), row)) without_text.push_back(row);
  finish(without_text);
  continue_all(*model_, std::move(prompts), protocol_.sampling, options_.memory_budget / 4,
               [&](const std::vector<size_t>& places, std::vector<std::string> texts) {
                 std::vector<size_t> rows;
                 for (size_t i = 0; i < places.size(); ++i) {
                   rows.push_back(prompted[places[i]]);
                   read_text(*model_, design_, given[rows.back()], texts[i], readings[rows.back()]);
                 }
                 n_texts_ += static_cast<int64_t>(rows.size());
                 finish(rows);
               });
}

void ProtocolRun::leave() {
  if (!view_) return;
  const auto& wanted = view_->wanted();
  for (auto one = wanted.rbegin(); one != wanted.rend(); ++one)
    if (n_waiting_.count(one->key) > 0) missing_.push_back(*one);
  view_.reset();
}

Result ProtocolRun::collect() const {
  Result out;
  const auto& cfg = model_->cfg();
  out.model = {cfg.model_name,
               model_->hash(),
               cfg.original_architecture,
               cfg.n_layers,
               models::precision_name(*model_),
               model_->device().str()};
  out.protocol = {protocol_.name,      protocol_.hash(),   to_string(protocol_.read),
                  protocol_.yes_token, protocol_.no_token, to_string(protocol_.inject),
                  protocol_.answers};
  const bool is_residual = *options_.strength_unit == StrengthUnit::residual;
  out.settings = {options_.seed,
                  options_.nulls,
                  to_string(*options_.strength_unit),
                  is_residual ? "median" : "",
                  design_.controls,
                  at::get_num_threads(),
                  INTROSPECT_VERSION,
                  INTROSPECT_BUILT_WITH_TORCH,
                  {},
                  options_.control_filter};
  for (const auto& readout : design_.readouts)
    for (const auto& one : readout->prepared.settings) out.settings.of_readouts.push_back(one);
  if (options_.control_filter) {
    for (const auto& scene : design_.scenes)
      out.settings.controls_asked += std::count_if(scene.asks.begin(), scene.asks.end(),
                                                   [](const auto& ask) { return ask.is_control(); });
    out.settings.controls_kept = out.settings.controls_asked - static_cast<int64_t>(dropped_.size());
  }
  out.warnings = design_.warnings;
  for (const auto& injection : design_.injections)
    for (const auto& scene : design_.scenes)
      for (const auto& ask : scene.asks) {
        if (dropped_.count(&ask) > 0) continue;
        const auto& base = readings_.at(keys_.at({&scene, &ask, nullptr}));
        const auto& injected =
            design_.is_steered(injection) ? readings_.at(keys_.at({&scene, &ask, &injection})) : base;
        const auto leaves = protocol_.read == experiments::Read::yes_no && leaves_format(base, injected);
        out.rows.push_back({setting_of(ask, &injection), base, injected, leaves});
      }
  warn_of_broken_settings(out);
  return out;
}

void ProtocolRun::count() {
  const auto steered = std::count_if(design_.injections.begin(), design_.injections.end(),
                                     [&](const auto& injection) { return design_.is_steered(injection); });
  total_ = 0;
  for (const auto& scene : design_.scenes)
    for (const auto& ask : scene.asks) total_ += dropped_.count(&ask) ? 1 : 1 + steered;
}

void ProtocolRun::want(const Scene& scene, const Ask& ask, const Injection* injection) {
  auto key = cell_keys_.reading(scene, ask, injection ? added_.at({&scene, injection}) : "");
  keys_[{&scene, &ask, injection}] = key;
  if (const auto found = n_waiting_.find(key); found != n_waiting_.end()) {
    ++found->second;
    return;
  }
  if (readings_.count(key) == 0)
    if (const auto stored = options_.store ? options_.store->get(key) : std::nullopt)
      readings_.emplace(key, stored_reading(*options_.store, key, *stored, design_, ask));
  if (readings_.count(key) > 0) {
    ++done_;
    return;
  }
  n_waiting_.emplace(key, 1);
  missing_.push_back({&scene, &ask, injection, std::move(key)});
}

void ProtocolRun::keep(std::vector<std::pair<const Wanted*, Reading>> finished) {
  if (options_.store && !finished.empty()) {
    std::vector<Cell> cells;
    for (const auto& [wanted, reading] : finished) cells.push_back(make_cell(*wanted, reading.to_json()));
    options_.store->put_many(cells, origin_);
  }
  for (auto& [wanted, reading] : finished) {
    readings_.emplace(wanted->key, std::move(reading));
    done_ += n_waiting_.at(wanted->key);
    n_waiting_.erase(wanted->key);
  }
}

Cell ProtocolRun::make_cell(const Wanted& wanted, std::string value) const {
  const auto& [scene, ask, injection, key] = wanted;
  auto base_key = injection ? keys_.at({scene, ask, nullptr}) : std::string();
  return {key, std::move(value), std::move(base_key), setting_of(*ask, injection)};
}

std::string ProtocolRun::added_hash(const Scene& scene, const Injection& injection) const {
  std::string out;
  const auto blocks = concat(injection.first_layer, " ", injection.last_layer);
  switch (protocol_.inject) {
    case Inject::vector:
    case Inject::random:
      out = directions_hash(scaled(scene, injection, *options_.strength_unit, measured_));
      break;
    case Inject::model:
      out = "model " + design_.prefill_model->hash();
      // Both are of one dtype, which the rest of the key tells.
      if (const auto held = models::precision_name(*design_.prefill_model); held != origin_.dtype)
        out += ", " + held;
      break;
    case Inject::tokens:
      return "tokens " + ids_hash(scene.others.at(injection.other));
    case Inject::patch:
    case Inject::swap:
      out = concat("patch ", ids_hash(scene.others.at(injection.other)), " ", exactly(injection.strength),
                   " ", blocks);
      break;
    case Inject::noise:
      out =
          concat("noise ", lengths_hash(added_lengths(scene, injection, *options_.strength_unit, measured_)),
                 " ", injection.seed);
      break;
    case Inject::dropout:
      out = concat("dropout ", exactly(injection.strength), " ", injection.seed, " ", blocks);
      break;
    case Inject::scale:
      out = concat("scale ", exactly(injection.strength), " ", blocks);
      break;
  }
  const auto ranges = reached(scene, injection);
  if (scene.is_whole() && ranges == scene.spans) return out;
  for (const auto& [first, last] : ranges) out += concat(" ", first, "-", last);
  return out;
}

bool ProtocolRun::find_norms(const Scene& scene) {
  const auto key = cell_keys_.norms(scene);
  const auto stored = options_.store ? options_.store->get(key) : std::nullopt;
  if (stored) measured_.norms[&scene] = stored_norms(*options_.store, key, *stored, model_->cfg().n_layers);
  return stored.has_value();
}

void ProtocolRun::filter_controls() {
  for (const auto& scene : design_.scenes)
    for (const auto& ask : scene.asks)
      if (ask.is_control() &&
          !(readings_.at(keys_.at({&scene, &ask, nullptr})).log_odds < *options_.control_filter))
        dropped_.insert(&ask);
  count();
}

bool ProtocolRun::needs_more_first() {
  if (*options_.strength_unit == StrengthUnit::residual)
    for (const auto& scene : design_.scenes)
      if (!find_norms(scene)) unmeasured_.push_back(&scene);
  return !unmeasured_.empty() || options_.control_filter || replaces_activations(protocol_.inject);
}

Prompt ProtocolRun::prompt(const Wanted& wanted, cache::KVCache cache, torch::Tensor resid_D) const {
  const auto& [scene, ask, injection, key] = wanted;
  const bool steered = injection && ask->keeps_steering && adds_vectors(protocol_.inject);
  auto tokens = scene->before;
  const auto& span =
      injection && protocol_.inject == Inject::tokens ? scene->others.at(injection->other) : scene->injected;
  tokens.insert(tokens.end(), span.begin(), span.end());
  tokens.insert(tokens.end(), ask->after.begin(), ask->after.end());
  // Draws hang on what is drawn, not on which readings are made together with it.
  const uint64_t seed = std::stoull(key.substr(0, 16), nullptr, 16);
  return {std::move(cache), std::move(resid_D), std::move(tokens),
          steered ? scaled(*scene, *injection, *options_.strength_unit, measured_) : Directions{}, seed};
}

void ProtocolRun::check_budget() {
  for (const auto& scene : design_.scenes) {
    const auto& longest =
        *std::max_element(scene.asks.begin(), scene.asks.end(),
                          [](const auto& a, const auto& b) { return a.after.size() < b.after.size(); });
    graph::Graph graph;
    Measured none;
    ExperimentGraph view(graph, model_, protocol_, design_, *options_.strength_unit, none);
    view.want({&scene, &longest, nullptr, ""});
    if (*options_.strength_unit == StrengthUnit::residual) view.measure_norms(scene);
    if (protocol_.inject == Inject::model) view.want({&scene, &longest, &design_.injections.front(), ""});
    for (const auto& [other, ids] : scene.others) view.measure_other(scene, other);
    try {
      graph::RunOptions options;
      options.memory_budget = graph_budget(options_.memory_budget, samples());
      graph.plan(options);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(concat("run_experiment: question '", longest.question, "' of protocol '",
                                         protocol_.name, "' must fit into memory_budget ",
                                         options_.memory_budget, ": ", error.what()));
    }
  }
}

}  // namespace introspect::experiments
