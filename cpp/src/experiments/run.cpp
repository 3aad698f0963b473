#include "introspect/experiments/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>

#include "experiments/protocol_run.h"
#include "experiments/speed.h"
#include "introspect/core/check.h"

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

/// Several experiments, whose readings are made in common graphs.
class Suite {
 public:
  /// The experiments stay where they are while this lives.
  Suite(const graph::ModelPtr& model, const std::vector<Experiment>& experiments, const SharedOptions& shared)
      : model_(model), options_(shared) {
    for (const auto& [protocol, vectors, options] : experiments)
      runs_.push_back(std::make_unique<ProtocolRun>(model, protocol, vectors, options));
    title_ = experiments.front().protocol.name;
    if (experiments.size() > 1) title_ += concat(" and ", experiments.size() - 1, " more");
  }

  std::vector<Result> run() {
    const at::NoGradGuard no_grad;
    graph::Graph first;
    for (auto& run : runs_) run->enter_first(first);
    found_ = sum(&ProtocolRun::done);
    if (options_.store && (first.n_reads() > 0 || !is_complete())) options_.store->check_can_write();
    if (first.n_reads() > 0) run_graph(first, /*is_first=*/true);
    for (auto& run : runs_) run->leave();
    for (auto& run : runs_) run->keep_first();
    plan_injections();
    tell();
    if (options_.store && !is_complete()) options_.store->check_can_write();
    if (options_.store && options_.store->can_write())
      for (auto& run : runs_) run->note_asked();
    while (!is_complete()) {
      graph::Graph graph;
      enter_next(graph);
      run_graph(graph, /*is_first=*/false);
      for (auto& run : runs_) run->leave();
    }
    tell();
    if (work_done_ > 0) {
      const auto texts = n_texts_to_come_ > 0 ? sum(&ProtocolRun::n_texts) * text_token_layers() : 0;
      report(options_.work, title_, work_done_ + texts, work_done_ + texts);
    }
    std::vector<Result> out;
    for (const auto& run : runs_) out.push_back(run->collect());
    return out;
  }

  RunPlan plan() {
    const at::NoGradGuard no_grad;
    graph::Graph first;
    for (auto& run : runs_) run->enter_first(first);
    found_ = sum(&ProtocolRun::done);
    engine::PlanSummary of_first;
    if (first.n_reads() > 0) of_first = first.plan(graph_options());
    const auto first_reads = first.n_reads();
    for (auto& run : runs_) run->stand_in();
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
    out.passes += of_first.n_passes;
    out.bytes_read += of_first.bytes_read;
    return out;
  }

  /// Of the graph that was planned last.
  int64_t pass_bytes() const { return pass_bytes_; }

 private:
  int64_t sum(int64_t (ProtocolRun::*number)() const) const {
    int64_t out = 0;
    for (const auto& run : runs_) out += (run.get()->*number)();
    return out;
  }
  bool is_complete() const {
    return std::all_of(runs_.begin(), runs_.end(), [](const auto& one) { return one->is_complete(); });
  }
  bool is_streamed() const {
    return std::any_of(runs_.begin(), runs_.end(), [](const auto& one) { return one->is_streamed(); });
  }
  bool samples() const {
    return std::any_of(runs_.begin(), runs_.end(), [](const auto& one) { return one->samples(); });
  }

  void plan_injections() {
    found_ -= sum(&ProtocolRun::done);
    for (auto& run : runs_) run->plan_injections();
    found_ += sum(&ProtocolRun::done);
    n_texts_to_come_ = sum(&ProtocolRun::missing_texts);
  }

  Speed& speed() {
    if (!speed_) speed_ = measure_speed(model_);
    return *speed_;
  }

  /// What the readouts of one read of a graph cost, as token-layers.
  int64_t read_token_layers() {
    double most = 0;
    for (const auto& run : runs_) most = std::max(most, run->logits_per_read());
    return speed().as_token_layers(most);
  }

  int64_t text_token_layers() {
    int64_t longest = 0;
    for (const auto& run : runs_)
      if (run->samples()) longest = std::max(longest, run->new_tokens());
    return static_cast<int64_t>(speed().sampling(kMostRows, longest, model_->cfg().n_layers) /
                                static_cast<double>(kMostRows) / speed().token_layer);
  }

  graph::RunOptions graph_options() {
    graph::RunOptions out;
    out.memory_budget = graph_budget(options_.memory_budget, samples());
    if (is_streamed()) {
      // Every pass reads the files: it holds what there is memory for, and leaves to the next what it can.
      out.most_rows = std::numeric_limits<int64_t>::max();
      out.most_token_layers = std::numeric_limits<int64_t>::max() - 1;
    } else {
      out.most_token_layers = speed().pass_token_layers(options_.pass_seconds);
    }
    out.read_token_layers = read_token_layers();
    // Texts are sampled side by side, and are finished batch by batch: a residual and a cache of each.
    if (samples()) out.least_reads = 2 * kMostRows;
    return out;
  }

  void enter_next(graph::Graph& graph, int64_t most_tokens = kMostTokens) {
    const double tokens = kGraphSeconds / speed().token_layer / static_cast<double>(model_->cfg().n_layers);
    const auto most =
        is_streamed()
            ? most_tokens
            : static_cast<int64_t>(std::clamp<double>(tokens, 1.0, static_cast<double>(most_tokens)));
    n_tokens_ = 0;
    for (auto& run : runs_) run->enter_next(graph, n_tokens_, most);
  }

  double seconds(const engine::PlanSummary& summary, int64_t n_reads) {
    return static_cast<double>(summary.token_layers_to_run + n_reads * read_token_layers()) *
               speed().token_layer +
           static_cast<double>(summary.n_passes) * speed().pass;
  }

  /// The cost of all graphs that are to come, of which one is planned.
  RunPlan whole(const engine::PlanSummary& summary, int64_t n_reads) {
    const double rest = static_cast<double>(sum(&ProtocolRun::missing_tokens));
    const double factor = n_tokens_ > 0 ? 1.0 + rest / static_cast<double>(n_tokens_) : 1.0;
    const auto up = [&](int64_t number) {
      return static_cast<int64_t>(std::llround(static_cast<double>(number) * factor));
    };
    RunPlan out;
    out.readings = sum(&ProtocolRun::total);
    out.found = found_;
    out.token_layers_asked = up(summary.token_layers_asked);
    out.token_layers_to_run = up(summary.token_layers_to_run);
    out.passes = up(summary.n_passes);
    out.bytes_read = up(summary.bytes_read);
    if (n_reads > 0) out.seconds = factor * seconds(summary, n_reads);
    if (n_texts_to_come_ > 0)
      out.seconds += static_cast<double>(n_texts_to_come_ * text_token_layers()) * speed().token_layer;
    pass_bytes_ = summary.peak_bytes;
    out.peak_bytes = summary.peak_bytes + sum(&ProtocolRun::direction_bytes) + n_tokens_ * kBytesPerToken +
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
        const double factor = static_cast<double>(sum(&ProtocolRun::total)) /
                              static_cast<double>(std::max<int64_t>(1, sum(&ProtocolRun::n_asks)));
        work_left_ = static_cast<int64_t>(
            factor * static_cast<double>(summary.token_layers_to_run + graph.n_reads() * per_read));
      }
      start = std::chrono::steady_clock::now();
    };
    const auto tell_work = [&] {
      const auto per_text = n_texts_to_come_ > 0 ? text_token_layers() : 0;
      const auto texts = sum(&ProtocolRun::n_texts) * per_text, all_texts = n_texts_to_come_ * per_text;
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
      for (auto& run : runs_)
        run->take(captured, [&] {
          tell();
          tell_work();
        });
      n_reads += static_cast<int64_t>(captured.size());
      tell_work();
      start = std::chrono::steady_clock::now();
      const double expected = static_cast<double>(passed) * speed().token_layer + speed().pass;
      const bool is_long = of_pass > 1.5 * options_.pass_seconds && of_pass > 1.3 * expected;
      if (is_first || is_streamed() || !is_long ||
          static_cast<int64_t>(captured.size()) <= options.least_reads)
        return;
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

  void tell() const { report(options_.progress, title_, sum(&ProtocolRun::done), sum(&ProtocolRun::total)); }

  const graph::ModelPtr& model_;
  const SharedOptions& options_;
  std::vector<std::unique_ptr<ProtocolRun>> runs_;
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

double count_all(const models::Model& model, const std::vector<Experiment>& experiments) {
  double out = 0;
  for (const auto& [protocol, vectors, options] : experiments)
    out += count_readings(model, protocol, vectors, options);
  return out;
}

/// With what was left out filled in, and what they have in common.
std::vector<Experiment> completed(std::vector<Experiment> experiments, const SharedOptions& shared) {
  check<std::invalid_argument>(!experiments.empty(), "run_experiments: at least one protocol is needed");
  for (auto& experiment : experiments) {
    experiment.options = with_defaults(std::move(experiment.options));
    experiment.options.store = shared.store;
    experiment.options.memory_budget = shared.memory_budget;
    experiment.options.pass_seconds = shared.pass_seconds;
  }
  return experiments;
}

RunPlan plan_completed(const graph::ModelPtr& model, const std::vector<Experiment>& experiments,
                       const SharedOptions& shared, double readings) {
  int64_t most_nulls = 0;
  for (const auto& experiment : experiments) most_nulls = std::max(most_nulls, experiment.options.nulls);
  if (readings <= kMostPlanned || most_nulls < 2) return Suite(model, experiments, shared).plan();
  auto fewer = experiments;
  for (auto& experiment : fewer) {
    const auto nulls = experiment.options.nulls;
    if (nulls < 2 || !experiment.options.null_factors.empty()) continue;
    experiment.options.nulls = std::clamp<int64_t>(
        static_cast<int64_t>(static_cast<double>(nulls) * kPlannedInstead / readings), 1, nulls);
  }
  Suite suite(model, fewer, shared);
  const auto planned = suite.plan();
  const double factor = readings / static_cast<double>(planned.readings);
  const auto up = [&](int64_t number) {
    return static_cast<int64_t>(std::min(std::round(static_cast<double>(number) * factor), 9e18));
  };
  return {up(planned.readings),
          up(planned.found),
          up(planned.token_layers_asked),
          up(planned.token_layers_to_run),
          planned.seconds * factor,
          suite.pass_bytes() + up(planned.peak_bytes - suite.pass_bytes()),
          up(planned.passes),
          up(planned.bytes_read)};
}

std::vector<Experiment> of_protocols(const std::vector<Protocol>& protocols, const NamedVectors& vectors,
                                     const ExperimentOptions& options) {
  std::vector<Experiment> out;
  for (const auto& protocol : protocols) out.push_back({protocol, vectors, options});
  return out;
}

SharedOptions shared_of(const ExperimentOptions& options) {
  return {options.store,    options.memory_budget, options.pass_seconds,
          options.progress, options.work,          options.before};
}

}  // namespace

RunPlan plan_experiments(const graph::ModelPtr& model, std::vector<Experiment> given,
                         const SharedOptions& shared) {
  const auto experiments = completed(std::move(given), shared);
  return plan_completed(model, experiments, shared, count_all(*model, experiments));
}

RunPlan plan_experiments(const graph::ModelPtr& model, const std::vector<Protocol>& protocols,
                         const NamedVectors& vectors, const ExperimentOptions& options) {
  return plan_experiments(model, of_protocols(protocols, vectors, options), shared_of(options));
}

std::string to_string(StrengthUnit unit) {
  return unit == StrengthUnit::absolute ? "absolute" : "residual";
}

std::vector<Result> run_experiments(const graph::ModelPtr& model, std::vector<Experiment> given,
                                    const SharedOptions& shared) {
  const auto experiments = completed(std::move(given), shared);
  auto told = shared;
  const double readings = count_all(*model, experiments);
  if (readings > kMostPlanned && shared.before) {
    shared.before(plan_completed(model, experiments, shared, readings));
    told.before = {};
  }
  check<std::invalid_argument>(readings <= kMostReadings, "run_experiment: one run holds at most ",
                               kMostReadings, " readings, got ", static_cast<int64_t>(readings),
                               ": ask for fewer nulls, layer ranges, strengths or questions at once");
  return Suite(model, experiments, told).run();
}

std::vector<Result> run_experiments(const graph::ModelPtr& model, const std::vector<Protocol>& protocols,
                                    const NamedVectors& vectors, const ExperimentOptions& options) {
  return run_experiments(model, of_protocols(protocols, vectors, options), shared_of(options));
}

Result run_experiment(const graph::ModelPtr& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options) {
  return run_experiments(model, {protocol}, vectors, options).front();
}

}  // namespace introspect::experiments
