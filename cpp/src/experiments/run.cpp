#include "introspect/experiments/run.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <utility>

#include <ATen/Parallel.h>
#include <torch/torch.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/version.h"

#include "experiments/cell_keys.h"
#include "experiments/continuation.h"
#include "experiments/experiment_graph.h"
#include "experiments/finite.h"
#include "experiments/plan.h"
#include "experiments/readout.h"

namespace introspect::experiments {
namespace {

// Of one graph, in tokens of its segments: a plan takes some hundred bytes a token. Larger sweeps are several graphs.
constexpr int64_t kMostTokens = 4'000'000;

/// Where texts are sampled, they are gathered from the graph's caches into batches of their own.
int64_t graph_budget(const ExperimentOptions& options, bool samples) {
  return samples ? options.memory_budget / 2 : options.memory_budget;
}

/// One protocol: which of its readings are known, which ones graphs are to make, and the result.
class Runner {
 public:
  Runner(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
         const ExperimentOptions& options)
      : model_(model),
        protocol_(protocol),
        options_(options),
        plan_(make_plan(*model, protocol, vectors, options)),
        origin_{model->cfg().model_name,
                model->hash(),
                dtype_name(model->dtype()),
                model->device().str(),
                protocol.name,
                protocol.hash(),
                options.seed,
                to_string(*options.strength_unit),
                INTROSPECT_VERSION,
                INTROSPECT_BUILT_WITH_TORCH},
        cell_keys_(*model, protocol, plan_, options.seed) {
    check_budget();
    count();
  }

  int64_t done() const { return done_; }
  int64_t total() const { return total_; }

  /// Puts into the graph what the injections cannot be planned without.
  void enter_first(graph::Graph& graph) {
    for (const auto& scene : plan_.scenes)
      for (const auto& ask : scene.asks) want(scene, ask, nullptr);
    if (!needs_more_first()) return;
    auto& view = enter(graph);
    for (const auto* scene : unmeasured_) view.measure_norms(*scene);
    if (protocol_.inject == Inject::patch)
      for (const auto& [concept_name, ids] : plan_.scenes.front().others)
        view.measure_other(plan_.scenes.front(), concept_name);
    for (const auto& wanted : std::exchange(missing_, {})) view.want(wanted);
  }

  /// Between the first graph and the others.
  void plan_injections() {
    for (const auto* scene : unmeasured_) {
      for (const auto& [layer, norm] : measured_.norms.at(scene))
        if (!std::isfinite(norm))
          throw_not_finite(*model_, "run_experiment", protocol_, *scene, scene->asks.front());
      Cell cell{cell_keys_.norms(*scene), nlohmann::json(measured_.norms.at(scene)).dump()};
      cell.kind = "norms";
      if (options_.store) options_.store->put(cell, origin_);
    }
    if (options_.control_filter) filter_controls();
    for (const auto& injection : plan_.injections)
      for (const auto& scene : plan_.scenes) {
        if (!plan_.is_steered(injection)) continue;
        added_[{&scene, &injection}] = added_hash(scene, injection);
        for (const auto& ask : scene.asks)
          if (dropped_.count(&ask) == 0) want(scene, ask, &injection);
      }
    std::reverse(missing_.begin(), missing_.end());  // they are taken from the end
  }

  bool is_complete() const { return missing_.empty(); }

  /// Puts readings into the graph, as many as its `tokens` leave room for.
  void enter_next(graph::Graph& graph, int64_t& tokens) {
    if (is_complete()) return;
    auto& view = enter(graph);
    for (; !missing_.empty() && tokens < kMostTokens; missing_.pop_back()) {
      const auto& wanted = missing_.back();
      if (wanted.injection && plan_.is_compared() && measured_.base.count({wanted.scene, wanted.ask}) == 0)
        view.measure_base(*wanted.scene, *wanted.ask);
      view.want(wanted);
      tokens += static_cast<int64_t>(wanted.scene->injected.size() + wanted.ask->after.size());
    }
  }

  /// Takes what one pass of the graph has read.
  void take(const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured) {
    if (!view_) return;
    std::vector<ReadRow> rows;
    auto complete = view_->take(captured);
    for (auto& [place, parts] : complete) {
      const auto& wanted = view_->wanted()[place];
      rows.push_back({wanted.ask, parts.resid_LD, parts.attention_LH, parts.continuations, {}});
      if (wanted.injection && plan_.is_compared())
        rows.back().base_D = measured_.base.at({wanted.scene, wanted.ask});
    }
    auto readings = read_out(*model_, plan_, rows);
    std::vector<Prompt> prompts;
    std::vector<size_t> prompted;  // readings whose text is sampled
    for (size_t i = 0; i < readings.size(); ++i) {
      const auto& wanted = view_->wanted()[complete[i].first];
      auto& parts = complete[i].second;
      if (readings[i].is_finite()) {
        if (!parts.cache) continue;
        prompted.push_back(i);
        prompts.push_back(prompt(wanted, std::move(*parts.cache), parts.resid_LD[-1]));
      } else if (!wanted.injection) {
        throw_not_finite(*model_, "run_experiment", protocol_, *wanted.scene, *wanted.ask);
      }
    }
    auto texts = continue_all(*model_, std::move(prompts), protocol_.sampling, options_.memory_budget / 4);
    for (size_t i = 0; i < prompted.size(); ++i) readings[prompted[i]].text = std::move(texts[i]);
    std::vector<std::pair<const Wanted*, Reading>> finished;
    for (size_t i = 0; i < readings.size(); ++i)
      finished.emplace_back(&view_->wanted()[complete[i].first], std::move(readings[i]));
    keep(std::move(finished));
  }

  /// The graph is run and about to go.
  void leave() { view_.reset(); }

  bool samples() const { return protocol_.read == experiments::Read::sample; }

  Result collect() const {
    share_known();
    Result out;
    const auto& cfg = model_->cfg();
    out.model = {cfg.model_name,
                 model_->hash(),
                 cfg.original_architecture,
                 cfg.n_layers,
                 dtype_name(model_->dtype()),
                 model_->device().str()};
    out.protocol = {protocol_.name,      protocol_.hash(),   to_string(protocol_.read),
                    protocol_.yes_token, protocol_.no_token, to_string(protocol_.inject),
                    protocol_.answers};
    const bool is_residual = *options_.strength_unit == StrengthUnit::residual;
    out.settings = {options_.seed,
                    options_.nulls,
                    to_string(*options_.strength_unit),
                    is_residual ? "median" : "",
                    plan_.controls,
                    at::get_num_threads(),
                    INTROSPECT_VERSION,
                    INTROSPECT_BUILT_WITH_TORCH,
                    options_.continuations,
                    options_.control_filter};
    if (options_.control_filter) {
      for (const auto& scene : plan_.scenes)
        out.settings.controls_asked += std::count_if(scene.asks.begin(), scene.asks.end(),
                                                     [](const auto& ask) { return ask.kind == "control"; });
      out.settings.controls_kept = out.settings.controls_asked - static_cast<int64_t>(dropped_.size());
    }
    out.warnings = plan_.warnings;
    for (const auto& injection : plan_.injections)
      for (const auto& scene : plan_.scenes)
        for (const auto& ask : scene.asks) {
          if (dropped_.count(&ask) > 0) continue;
          const auto& base = readings_.at(keys_.at({&scene, &ask, nullptr}));
          const auto& injected =
              plan_.is_steered(injection) ? readings_.at(keys_.at({&scene, &ask, &injection})) : base;
          out.rows.push_back(
              {injection.concept_name, injection.strength, injection.first_layer, injection.last_layer,
               ask.question, ask.kind, injection.null_index < 0 ? ask.kind : "random", injection.null_index,
               base, injected, ask.paraphrase, injection.place, injection.part.first, injection.part.last,
               ask.asked_in, protocol_.read == experiments::Read::yes_no && leaves_format(base, injected)});
        }
    warn_of_broken_settings(out);
    return out;
  }

 private:
  ExperimentGraph& enter(graph::Graph& graph) {
    return view_.emplace(graph, model_, protocol_, plan_, *options_.strength_unit, measured_);
  }

  void count() {
    const auto steered = std::count_if(plan_.injections.begin(), plan_.injections.end(),
                                       [&](const auto& injection) { return plan_.is_steered(injection); });
    total_ = 0;
    for (const auto& scene : plan_.scenes)
      for (const auto& ask : scene.asks) total_ += dropped_.count(&ask) ? 1 : 1 + steered;
  }

  // ---- what is known --------------------------------------------------------------------------------------------

  /// Notes a reading, and puts it on the list unless it is known, now or from an earlier run, or stands there.
  void want(const Scene& scene, const Ask& ask, const Injection* injection) {
    auto key = cell_keys_.reading(scene, ask, injection ? added_.at({&scene, injection}) : "");
    keys_[{&scene, &ask, injection}] = key;
    if (const auto found = n_waiting_.find(key); found != n_waiting_.end()) {
      ++found->second;
      return;
    }
    if (readings_.count(key) == 0)
      if (const auto stored = options_.store ? options_.store->get(key) : std::nullopt)
        readings_.emplace(key, Reading::from_json(*stored));
    if (readings_.count(key) > 0) {
      ++done_;
      return;
    }
    n_waiting_.emplace(key, 1);
    missing_.push_back({&scene, &ask, injection, std::move(key)});
  }

  void keep(std::vector<std::pair<const Wanted*, Reading>> finished) {
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

  Cell make_cell(const Wanted& wanted, std::string value) const {
    const auto& [scene, ask, injection, key] = wanted;
    Cell cell{key, std::move(value)};
    cell.question = ask->question;
    cell.question_kind = ask->kind;
    cell.kind = "base";
    cell.paraphrase = ask->paraphrase;
    cell.asked_in = ask->asked_in;
    if (!injection) return cell;
    cell.base_key = keys_.at({scene, ask, nullptr});
    cell.concept_name = injection->concept_name;
    cell.strength = injection->strength;
    cell.first_layer = injection->first_layer;
    cell.last_layer = injection->last_layer;
    cell.kind = injection->null_index < 0 ? ask->kind : "random";
    cell.null_index = injection->null_index;
    cell.place = injection->place;
    cell.part_first = injection->part.first;
    cell.part_last = injection->part.last;
    return cell;
  }

  /// Readings that something else made are rows of this protocol, too.
  void share_known() const {
    if (!options_.store) return;
    std::vector<Cell> cells;
    for (const auto& [place, key] : keys_) {
      const auto& [scene, ask, injection] = place;
      if (dropped_.count(ask) == 0) cells.push_back(make_cell({scene, ask, injection, key}, ""));
    }
    options_.store->share(cells, origin_);
  }

  /// The identity of what an injection does to a scene.
  std::string added_hash(const Scene& scene, const Injection& injection) const {
    std::string out;
    switch (protocol_.inject) {
      case Inject::vector:
      case Inject::random:
        out = directions_hash(scaled(scene, injection, *options_.strength_unit, measured_));
        break;
      case Inject::model:
        out = "model " + plan_.prefill_model->hash();
        break;
      case Inject::tokens:
        return "tokens " + ids_hash(scene.others.at(injection.concept_name));
      case Inject::patch:
        out = concat("patch ", ids_hash(scene.others.at(injection.concept_name)), " ", injection.strength,
                     " ", injection.first_layer, " ", injection.last_layer);
        break;
    }
    const auto ranges = reached(scene, injection);
    if (scene.is_whole() && ranges == scene.spans) return out;
    for (const auto& [first, last] : ranges) out += concat(" ", first, "-", last);
    return out;
  }

  bool find_norms(const Scene& scene) {
    const auto stored = options_.store ? options_.store->get(cell_keys_.norms(scene)) : std::nullopt;
    if (stored) nlohmann::json::parse(*stored).get_to(measured_.norms[&scene]);
    return stored.has_value();
  }

  /// Control questions that the un-steered model does not answer as the filter asks.
  void filter_controls() {
    for (const auto& scene : plan_.scenes)
      for (const auto& ask : scene.asks)
        if (ask.kind == "control" &&
            !(readings_.at(keys_.at({&scene, &ask, nullptr})).log_odds < *options_.control_filter))
          dropped_.insert(&ask);
    count();
  }

  // ---- the graph ------------------------------------------------------------------------------------------------

  bool needs_more_first() {
    if (*options_.strength_unit == StrengthUnit::residual)
      for (const auto& scene : plan_.scenes)
        if (!find_norms(scene)) unmeasured_.push_back(&scene);
    return !unmeasured_.empty() || options_.control_filter || protocol_.inject == Inject::patch;
  }

  Prompt prompt(const Wanted& wanted, cache::KVCache cache, torch::Tensor resid_D) const {
    const auto& [scene, ask, injection, key] = wanted;
    const bool steered = injection && ask->keeps_steering && protocol_.inject != Inject::patch;
    auto tokens = scene->before;
    const auto& span = injection && protocol_.inject == Inject::tokens
                           ? scene->others.at(injection->concept_name)
                           : scene->injected;
    tokens.insert(tokens.end(), span.begin(), span.end());
    tokens.insert(tokens.end(), ask->after.begin(), ask->after.end());
    // Draws hang on what is drawn, not on which readings are made together with it.
    const uint64_t seed = std::stoull(key.substr(0, 16), nullptr, 16);
    return {std::move(cache), std::move(resid_D), std::move(tokens),
            steered ? scaled(*scene, *injection, *options_.strength_unit, measured_) : Directions{}, seed};
  }

  /// Throws, before anything runs, for a budget that does not hold the longest question of a scene, and for another
  /// model that does not fit.
  void check_budget() {
    for (const auto& scene : plan_.scenes) {
      const auto& longest =
          *std::max_element(scene.asks.begin(), scene.asks.end(),
                            [](const auto& a, const auto& b) { return a.after.size() < b.after.size(); });
      graph::Graph graph;
      Measured none;
      ExperimentGraph view(graph, model_, protocol_, plan_, *options_.strength_unit, none);
      view.want({&scene, &longest, nullptr, ""});
      if (*options_.strength_unit == StrengthUnit::residual) view.measure_norms(scene);
      if (protocol_.inject == Inject::model) view.want({&scene, &longest, &plan_.injections.front(), ""});
      for (const auto& [concept_name, ids] : scene.others) view.measure_other(scene, concept_name);
      try {
        graph::RunOptions options;
        options.memory_budget = graph_budget(options_, samples());
        graph.plan(options);
      } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(concat("run_experiment: question '", longest.question, "' of protocol '",
                                           protocol_.name, "' must fit into memory_budget ",
                                           options_.memory_budget, ": ", error.what()));
      }
    }
  }

  const graph::ModelPtr& model_;
  const Protocol& protocol_;
  const ExperimentOptions& options_;
  const Plan plan_;
  const Origin origin_;
  const CellKeys cell_keys_;
  std::map<std::tuple<const Scene*, const Ask*, const Injection*>, std::string> keys_;  // of every reading
  std::map<std::pair<const Scene*, const Injection*>, std::string> added_;              // added_hash
  std::unordered_map<std::string, Reading> readings_;                                   // by key
  std::unordered_map<std::string, int64_t> n_waiting_;  // key -> how many readings it is
  Measured measured_;
  std::vector<const Scene*> unmeasured_;
  std::vector<Wanted> missing_;          // readings that no graph has been asked for
  std::optional<ExperimentGraph> view_;  // of the graph that runs
  std::set<const Ask*> dropped_;         // control questions
  int64_t done_ = 0, total_ = 0;         // readings
};

/// Several protocols, whose readings are made in common graphs.
class Suite {
 public:
  Suite(const graph::ModelPtr& model, const std::vector<Protocol>& protocols, const NamedVectors& vectors,
        const ExperimentOptions& options)
      : options_(with_defaults(options)) {
    check<std::invalid_argument>(!protocols.empty(), "run_experiments: at least one protocol is needed");
    for (const auto& protocol : protocols)
      runners_.push_back(std::make_unique<Runner>(model, protocol, vectors, options_));
    title_ = protocols.front().name;
    if (protocols.size() > 1) title_ += concat(" and ", protocols.size() - 1, " more");
  }

  std::vector<Result> run() {
    const torch::NoGradGuard no_grad;
    run_graph([](Runner& runner, graph::Graph& graph) { runner.enter_first(graph); });
    for (auto& runner : runners_) runner->plan_injections();
    tell();
    const auto is_complete = [](const auto& runner) { return runner->is_complete(); };
    while (!std::all_of(runners_.begin(), runners_.end(), is_complete)) {
      int64_t tokens = 0;
      run_graph([&](Runner& runner, graph::Graph& graph) { runner.enter_next(graph, tokens); });
    }
    tell();
    std::vector<Result> out;
    for (const auto& runner : runners_) out.push_back(runner->collect());
    return out;
  }

 private:
  void run_graph(const std::function<void(Runner&, graph::Graph&)>& enter) {
    graph::Graph graph;
    for (auto& runner : runners_) enter(*runner, graph);
    const bool samples =
        std::any_of(runners_.begin(), runners_.end(), [](const auto& runner) { return runner->samples(); });
    graph::RunOptions options;
    options.memory_budget = graph_budget(options_, samples);
    if (options_.progress) options.progress = [this](const std::string&, int64_t, int64_t) { tell(); };
    if (graph.n_reads() > 0)
      graph.run(options, [&](const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured) {
        for (auto& runner : runners_) runner->take(captured);
        tell();
      });
    for (auto& runner : runners_) runner->leave();
  }

  void tell() const {
    int64_t done = 0, total = 0;
    for (const auto& runner : runners_) {
      done += runner->done();
      total += runner->total();
    }
    report(options_.progress, title_, done, total);
  }

  const ExperimentOptions options_;
  std::vector<std::unique_ptr<Runner>> runners_;
  std::string title_;
};

}  // namespace

std::pair<int64_t, int64_t> LayerRange::resolve(int64_t n_layers) const {
  if (is_fraction) {
    check<std::out_of_range>(first >= 0 && first <= last && last <= 1,
                             "LayerRange: fractions of the depth must be in order and from 0 to 1, got ",
                             first, " to ", last);
    const auto block = [&](double fraction) {
      return std::min<int64_t>(std::llround(fraction * static_cast<double>(n_layers)), n_layers - 1);
    };
    return {block(first), block(last)};
  }
  check<std::out_of_range>(first >= 0 && first <= last && last < static_cast<double>(n_layers),
                           "LayerRange: layers must be in order and from 0 to ", n_layers - 1, ", got ",
                           first, " to ", last);
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

StrengthUnit parse_strength_unit(const std::string& name) {
  if (name == "absolute") return StrengthUnit::absolute;
  check<std::invalid_argument>(name == "residual", "strength_unit must be absolute or residual, got '", name,
                               "'");
  return StrengthUnit::residual;
}

std::string to_string(StrengthUnit unit) {
  return unit == StrengthUnit::absolute ? "absolute" : "residual";
}

std::vector<Result> run_experiments(const graph::ModelPtr& model, const std::vector<Protocol>& protocols,
                                    const NamedVectors& vectors, const ExperimentOptions& options) {
  return Suite(model, protocols, vectors, options).run();
}

Result run_experiment(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options) {
  return run_experiments(model, {protocol}, vectors, options).front();
}

}  // namespace introspect::experiments
