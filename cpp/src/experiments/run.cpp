#include "introspect/experiments/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <ATen/Parallel.h>
#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/version.h"

#include "experiments/cell_keys.h"
#include "experiments/continuation.h"
#include "experiments/experiment_graph.h"
#include "experiments/finite.h"
#include "experiments/plan.h"
#include "experiments/reading_check.h"
#include "experiments/readout.h"
#include "experiments/speed.h"

namespace introspect::experiments {
namespace {

// Of one graph, in tokens of its segments: a plan takes some hundred bytes a token. Larger sweeps are several graphs.
constexpr int64_t kMostTokens = 4'000'000;
constexpr double kGraphSeconds = 400;  // of one graph, so that planning one again costs little beside it
constexpr int64_t kBytesPerToken = 300, kBytesPerReading = 2000;  // of a plan; of a result
constexpr int64_t kMostPlannedTokens = 200'000;  // of the graph that a plan is counted up from
constexpr int64_t kMostPlanned = 20'000;    // readings that are planned before anything is said of them ...
constexpr int64_t kPlannedInstead = 1'000;  // ... and of what is planned in the place of more
constexpr int64_t kMostReadings = 10'000'000;

/// The readings that are in a graph are to be planned again, in shorter passes.
struct PlanAgain {};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

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
  int64_t n_texts() const { return n_texts_; }
  int64_t n_asks() const {
    int64_t out = 0;
    for (const auto& scene : plan_.scenes) out += static_cast<int64_t>(scene.asks.size());
    return out;
  }

  static int64_t n_tokens(const Wanted& wanted) {
    return static_cast<int64_t>(wanted.scene->injected.size() + wanted.ask->after.size());
  }
  int64_t missing_tokens() const {
    int64_t out = 0;
    for (const auto& wanted : missing_) out += n_tokens(wanted);
    return out;
  }
  int64_t missing_texts() const {
    return std::count_if(missing_.begin(), missing_.end(), [](const auto& one) { return one.ask->samples; });
  }
  int64_t new_tokens() const { return protocol_.sampling.max_new_tokens; }
  /// Positions whose logits one reading takes.
  double n_logits() const {
    const auto& what = plan_.readouts;
    return (what.lens ? static_cast<double>(model_->cfg().n_layers) : 1.0) + (plan_.is_compared() ? 1 : 0);
  }
  int64_t direction_bytes() const {
    std::unordered_set<const void*> seen;
    int64_t out = 0;
    for (const auto& injection : plan_.injections)
      for (const auto& [layer, direction] : injection.directions)
        if (seen.insert(direction.unsafeGetTensorImpl()).second)
          out += static_cast<int64_t>(direction.nbytes());
    return out;
  }

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

  /// Between the first graph and the others, where that has run.
  void keep_first() {
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

  /// In place of what the first graph measures: what costs as much, for a plan.
  void stand_in() {
    for (const auto* scene : unmeasured_)
      for (int64_t layer = 0; layer < model_->cfg().n_layers; ++layer) measured_.norms[scene][layer] = 1.0;
    for (const auto& scene : plan_.scenes)
      for (const auto& [concept_name, ids] : scene.others) {
        const auto differs = static_cast<double>(measured_.others.size());
        auto& other = measured_.others[{&scene, concept_name}];
        for (int64_t layer = 0; layer < model_->cfg().n_layers; ++layer)
          other[layer] = at::full({static_cast<int64_t>(ids.size()), model_->cfg().d_model}, differs);
      }
  }

  void plan_injections() {
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

  /// Notes in the store what the result will be of, so that it can be put together again from there.
  void note_asked() const {
    std::vector<Cell> cells;
    const auto flush = [&] {
      options_.store->put_asked(cells, origin_);
      cells.clear();
    };
    const auto add = [&](const Scene& scene, const Ask& ask, const Injection* injection) {
      if (dropped_.count(&ask) > 0) return;
      const bool is_steered = injection && plan_.is_steered(*injection);
      cells.push_back(make_cell(
          {&scene, &ask, injection, keys_.at({&scene, &ask, is_steered ? injection : nullptr})}, {}));
      if (cells.size() == 10'000) flush();
    };
    for (const auto& scene : plan_.scenes)
      for (const auto& ask : scene.asks) add(scene, ask, nullptr);
    for (const auto& injection : plan_.injections)
      for (const auto& scene : plan_.scenes)
        for (const auto& ask : scene.asks) add(scene, ask, &injection);
    flush();
  }

  /// Puts readings into the graph, as many as its `tokens` leave room for.
  void enter_next(graph::Graph& graph, int64_t& tokens, int64_t most_tokens) {
    if (is_complete() || tokens >= most_tokens) return;
    auto& view = enter(graph);
    for (; !missing_.empty() && tokens < most_tokens; missing_.pop_back()) {
      const auto& wanted = missing_.back();
      if (wanted.injection && plan_.is_compared() && measured_.base.count({wanted.scene, wanted.ask}) == 0)
        view.measure_base(*wanted.scene, *wanted.ask);
      view.want(wanted);
      tokens += n_tokens(wanted);
    }
  }

  /// Takes what one pass of the graph has read. `tell` is called as readings are finished.
  void take(const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured,
            const std::function<void()>& tell) {
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
                     readings[rows.back()].text = std::move(texts[i]);
                   }
                   n_texts_ += static_cast<int64_t>(rows.size());
                   finish(rows);
                 });
  }

  /// The graph is about to go. What it has not read is missing again.
  void leave() {
    if (!view_) return;
    const auto& wanted = view_->wanted();
    for (auto one = wanted.rbegin(); one != wanted.rend(); ++one)
      if (n_waiting_.count(one->key) > 0) missing_.push_back(*one);
    view_.reset();
  }

  bool samples() const { return protocol_.read == experiments::Read::sample; }

  Result collect() const {
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
        readings_.emplace(key, stored_reading(*options_.store, key, *stored, plan_, ask));
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
    const auto key = cell_keys_.norms(scene);
    const auto stored = options_.store ? options_.store->get(key) : std::nullopt;
    if (stored) measured_.norms[&scene] = stored_norms(*options_.store, key, *stored, model_->cfg().n_layers);
    return stored.has_value();
  }

  /// Control questions that the unsteered model does not answer as the filter asks.
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
  int64_t n_texts_ = 0;                  // that have been sampled
};

/// Several protocols, whose readings are made in common graphs.
class Suite {
 public:
  Suite(const graph::ModelPtr& model, const std::vector<Protocol>& protocols, const NamedVectors& vectors,
        const ExperimentOptions& options)
      : model_(model), options_(options) {
    check<std::invalid_argument>(!protocols.empty(), "run_experiments: at least one protocol is needed");
    for (const auto& protocol : protocols)
      runners_.push_back(std::make_unique<Runner>(model, protocol, vectors, options_));
    title_ = protocols.front().name;
    if (protocols.size() > 1) title_ += concat(" and ", protocols.size() - 1, " more");
  }

  std::vector<Result> run() {
    const at::NoGradGuard no_grad;
    graph::Graph first;
    for (auto& runner : runners_) runner->enter_first(first);
    found_ = sum(&Runner::done);
    if (options_.store && (first.n_reads() > 0 || !is_complete())) options_.store->check_can_write();
    if (first.n_reads() > 0) run_graph(first, /*is_first=*/true);
    for (auto& runner : runners_) runner->leave();
    for (auto& runner : runners_) runner->keep_first();
    plan_injections();
    tell();
    if (options_.store && !is_complete()) options_.store->check_can_write();
    if (options_.store && options_.store->can_write())
      for (auto& runner : runners_) runner->note_asked();
    while (!is_complete()) {
      graph::Graph graph;
      enter_next(graph);
      run_graph(graph, /*is_first=*/false);
      for (auto& runner : runners_) runner->leave();
    }
    tell();
    if (work_done_ > 0) {
      const auto texts = n_texts_to_come_ > 0 ? sum(&Runner::n_texts) * text_token_layers() : 0;
      report(options_.work, title_, work_done_ + texts, work_done_ + texts);
    }
    std::vector<Result> out;
    for (const auto& runner : runners_) out.push_back(runner->collect());
    return out;
  }

  RunPlan plan() {
    const at::NoGradGuard no_grad;
    graph::Graph first;
    for (auto& runner : runners_) runner->enter_first(first);
    found_ = sum(&Runner::done);
    engine::PlanSummary of_first;
    if (first.n_reads() > 0) of_first = first.plan(graph_options());
    const auto first_reads = first.n_reads();
    for (auto& runner : runners_) runner->stand_in();
    plan_injections();
    if (is_complete() && first_reads == 0) return whole({}, 0);
    graph::Graph graph;
    if (!is_complete()) enter_next(graph, kMostPlannedTokens);
    auto out =
        whole(graph.n_reads() > 0 ? graph.plan(graph_options()) : engine::PlanSummary{}, graph.n_reads());
    out.token_layers_asked += of_first.token_layers_asked;
    out.token_layers_to_run += of_first.token_layers_to_run;
    out.seconds += seconds(of_first, first_reads);
    out.peak_bytes = std::max(out.peak_bytes, of_first.peak_bytes);
    return out;
  }

  /// Of the graph that was planned last.
  int64_t pass_bytes() const { return pass_bytes_; }

 private:
  int64_t sum(int64_t (Runner::*number)() const) const {
    int64_t out = 0;
    for (const auto& runner : runners_) out += (runner.get()->*number)();
    return out;
  }
  bool is_complete() const {
    return std::all_of(runners_.begin(), runners_.end(), [](const auto& one) { return one->is_complete(); });
  }
  bool samples() const {
    return std::any_of(runners_.begin(), runners_.end(), [](const auto& one) { return one->samples(); });
  }

  void plan_injections() {
    found_ -= sum(&Runner::done);
    for (auto& runner : runners_) runner->plan_injections();
    found_ += sum(&Runner::done);
    n_texts_to_come_ = sum(&Runner::missing_texts);
  }

  Speed& speed() {
    if (!speed_) speed_ = measure_speed(model_);
    return *speed_;
  }

  /// What the readouts of one reading of a graph cost, as token-layers.
  int64_t read_token_layers() {
    double most = 0;
    for (const auto& runner : runners_) most = std::max(most, runner->n_logits());
    return speed().as_token_layers(most);
  }

  int64_t text_token_layers() {
    int64_t longest = 0;
    for (const auto& runner : runners_)
      if (runner->samples()) longest = std::max(longest, runner->new_tokens());
    return static_cast<int64_t>(speed().sampling(kMostRows, longest, model_->cfg().n_layers) /
                                static_cast<double>(kMostRows) / speed().token_layer);
  }

  graph::RunOptions graph_options() {
    graph::RunOptions out;
    out.memory_budget = graph_budget(options_, samples());
    out.most_token_layers = speed().pass_token_layers(options_.pass_seconds);
    out.read_token_layers = read_token_layers();
    // Texts are sampled side by side, and are finished batch by batch: a residual and a cache of each.
    if (samples()) out.least_reads = 2 * kMostRows;
    return out;
  }

  void enter_next(graph::Graph& graph, int64_t most_tokens = kMostTokens) {
    const double tokens = kGraphSeconds / speed().token_layer / static_cast<double>(model_->cfg().n_layers);
    const auto most = static_cast<int64_t>(std::clamp<double>(tokens, 1.0, static_cast<double>(most_tokens)));
    n_tokens_ = 0;
    for (auto& runner : runners_) runner->enter_next(graph, n_tokens_, most);
  }

  double seconds(const engine::PlanSummary& summary, int64_t n_reads) {
    return static_cast<double>(summary.token_layers_to_run + n_reads * read_token_layers()) *
               speed().token_layer +
           static_cast<double>(summary.n_passes) * speed().pass;
  }

  /// The cost of all graphs that are to come, of which one is planned.
  RunPlan whole(const engine::PlanSummary& summary, int64_t n_reads) {
    const double rest = static_cast<double>(sum(&Runner::missing_tokens));
    const double factor = n_tokens_ > 0 ? 1.0 + rest / static_cast<double>(n_tokens_) : 1.0;
    const auto up = [&](int64_t number) {
      return static_cast<int64_t>(std::llround(static_cast<double>(number) * factor));
    };
    RunPlan out;
    out.readings = sum(&Runner::total);
    out.found = found_;
    out.token_layers_asked = up(summary.token_layers_asked);
    out.token_layers_to_run = up(summary.token_layers_to_run);
    if (n_reads > 0) out.seconds = factor * seconds(summary, n_reads);
    if (n_texts_to_come_ > 0)
      out.seconds += static_cast<double>(n_texts_to_come_ * text_token_layers()) * speed().token_layer;
    pass_bytes_ = summary.peak_bytes;
    out.peak_bytes = summary.peak_bytes + sum(&Runner::direction_bytes) + n_tokens_ * kBytesPerToken +
                     out.readings * kBytesPerReading;
    return out;
  }

  /// Runs what is missing, down to its end or to where it is to be planned again.
  void run_graph(const graph::Graph& graph, bool is_first) {
    auto options = graph_options();
    const auto per_read = options.read_token_layers;
    engine::PlanSummary summary;
    int64_t done = 0, done_before = 0,
            n_reads = 0;  // token-layers, those of finished passes, readings of the graph
    double seconds_taken = 0;
    auto start = std::chrono::steady_clock::now();
    options.on_plan = [&](const engine::PlanSummary& planned) {
      summary = planned;
      if (!is_first) {
        const auto plan = whole(summary, graph.n_reads());
        if (!std::exchange(is_told_, true) && options_.before) options_.before(plan);
        const double factor = static_cast<double>(plan.token_layers_to_run) /
                              static_cast<double>(std::max<int64_t>(1, summary.token_layers_to_run));
        work_left_ = static_cast<int64_t>(
            factor * static_cast<double>(summary.token_layers_to_run + graph.n_reads() * per_read));
      } else {  // the injections are not known yet: each reading of theirs will cost about as much
        const double factor = static_cast<double>(sum(&Runner::total)) /
                              static_cast<double>(std::max<int64_t>(1, sum(&Runner::n_asks)));
        work_left_ = static_cast<int64_t>(
            factor * static_cast<double>(summary.token_layers_to_run + graph.n_reads() * per_read));
      }
      start = std::chrono::steady_clock::now();
    };
    const auto tell_work = [&] {
      const auto per_text = n_texts_to_come_ > 0 ? text_token_layers() : 0;
      const auto texts = sum(&Runner::n_texts) * per_text, all_texts = n_texts_to_come_ * per_text;
      const auto now = work_done_ + done + n_reads * per_read + texts;
      report(options_.work, title_, now, std::max(now, work_done_ + work_left_ + all_texts));
    };
    options.progress = [&](const std::string&, int64_t now, int64_t) {
      done = now;
      tell();
      tell_work();
    };
    const auto take = [&](const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured) {
      const double of_pass = seconds_since(start);
      const auto passed = done - std::exchange(done_before, done);
      seconds_taken += of_pass;
      for (auto& runner : runners_)
        runner->take(captured, [&] {
          tell();
          tell_work();
        });
      n_reads += static_cast<int64_t>(captured.size());
      tell_work();
      start = std::chrono::steady_clock::now();
      const double expected = static_cast<double>(passed) * speed().token_layer + speed().pass;
      const bool is_long = of_pass > 1.5 * options_.pass_seconds && of_pass > 1.3 * expected;
      if (is_first || !is_long || static_cast<int64_t>(captured.size()) <= options.least_reads) return;
      if (n_reads == graph.n_reads()) return;
      speed().scale(of_pass / expected);
      throw PlanAgain();
    };
    try {
      graph.run(options, take);
      const double expected = static_cast<double>(done) * speed().token_layer +
                              static_cast<double>(summary.n_passes) * speed().pass;
      if (seconds_taken > 1 && expected > 0) speed().scale(seconds_taken / expected);
    } catch (const PlanAgain&) {
    }
    work_done_ += done + n_reads * per_read;
  }

  void tell() const { report(options_.progress, title_, sum(&Runner::done), sum(&Runner::total)); }

  const graph::ModelPtr& model_;
  const ExperimentOptions& options_;
  std::vector<std::unique_ptr<Runner>> runners_;
  std::string title_;
  std::optional<Speed> speed_;
  bool is_told_ = false;
  int64_t found_ = 0;  // readings, in the store
  int64_t pass_bytes_ = 0;
  int64_t n_tokens_ = 0;         // of the graph that was entered last
  int64_t n_texts_to_come_ = 0;  // to sample, counted before the first graph of injections
  int64_t work_done_ = 0,
          work_left_ = 0;  // token-layers of finished graphs; of the one that runs and the rest
};

double count_all(const models::Model& model, const std::vector<Protocol>& protocols,
                 const NamedVectors& vectors, const ExperimentOptions& options) {
  double out = 0;
  for (const auto& protocol : protocols) out += count_readings(model, protocol, vectors, options);
  return out;
}

}  // namespace

RunPlan plan_experiments(const graph::ModelPtr& model, const std::vector<Protocol>& protocols,
                         const NamedVectors& vectors, const ExperimentOptions& given) {
  const auto options = with_defaults(given);
  const double readings = count_all(*model, protocols, vectors, options);
  if (readings <= kMostPlanned || options.nulls < 2) return Suite(model, protocols, vectors, options).plan();
  auto fewer = options;
  fewer.nulls = std::clamp<int64_t>(
      static_cast<int64_t>(static_cast<double>(options.nulls) * kPlannedInstead / readings), 1,
      options.nulls);
  Suite suite(model, protocols, vectors, fewer);
  const auto planned = suite.plan();
  const double factor = readings / static_cast<double>(planned.readings);
  const auto up = [&](int64_t number) {
    return static_cast<int64_t>(std::min(std::round(static_cast<double>(number) * factor), 9e18));
  };
  return {up(planned.readings),           up(planned.found),
          up(planned.token_layers_asked), up(planned.token_layers_to_run),
          planned.seconds * factor,       suite.pass_bytes() + up(planned.peak_bytes - suite.pass_bytes())};
}

std::string to_string(StrengthUnit unit) {
  return unit == StrengthUnit::absolute ? "absolute" : "residual";
}

std::vector<Result> run_experiments(const graph::ModelPtr& model, const std::vector<Protocol>& protocols,
                                    const NamedVectors& vectors, const ExperimentOptions& given) {
  const auto options = with_defaults(given);
  auto told = options;
  const double readings = count_all(*model, protocols, vectors, options);
  if (readings > kMostPlanned && options.before) {
    options.before(plan_experiments(model, protocols, vectors, options));
    told.before = {};
  }
  check<std::invalid_argument>(readings <= kMostReadings, "run_experiment: one run holds at most ",
                               kMostReadings, " readings, got ", static_cast<int64_t>(readings),
                               ": ask for fewer nulls, layer ranges, strengths or questions at once");
  return Suite(model, protocols, vectors, told).run();
}

Result run_experiment(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options) {
  return run_experiments(model, {protocol}, vectors, options).front();
}

}  // namespace introspect::experiments
