#include "introspect/experiments/coherence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/ops/logits.h"

#include "experiments/continuation.h"
#include "experiments/dose_meter.h"

namespace introspect::experiments {
namespace {

// Strengths of a window, in units of DoseMeter::scale shared among the blocks of the range: windows have been seen to end
// at about half of it.
constexpr double kUsual = 1.0 / 4, kLargest = 64.0;
constexpr int64_t kGram = 3;
constexpr auto kCoherent = "coherent";

/// Draws and scores texts in one context.
class Reader {
 public:
  Reader(const std::string& who, graph::ModelPtr model, const DoseContext& context,
         const NamedVectors& vectors, const CoherenceOptions& options)
      : model_(model), options_(options), meter_(who, std::move(model), context, vectors, quiet(options)) {
    check<std::invalid_argument>(options.max_new_tokens > 0, who, ": max_new_tokens must be 1 or more, got ",
                                 options.max_new_tokens);
    check<std::invalid_argument>(std::isfinite(options.factor) && options.factor > 0, who,
                                 ": factor must be above 0, got ", options.factor);
    check<std::invalid_argument>(options.more_repetition >= 0, who,
                                 ": more_repetition must be 0 or more, got ", options.more_repetition);
    for (const auto& scene : meter_.scenes()) {
      int64_t longest = 0;
      for (const auto& ask : scene.asks) longest = std::max(longest, static_cast<int64_t>(ask.after.size()));
      longest += scene.span_end() + options.max_new_tokens;
      check<ShapeError>(longest <= model_->cfg().n_ctx, who, ": a text of ", options.max_new_tokens,
                        " tokens must fit into the model's ", model_->cfg().n_ctx, " positions, needs ",
                        longest);
    }
  }

  const DoseMeter& meter() const { return meter_; }

  std::vector<Coherence> measure(const std::vector<DoseMeter::Request>& requests) {
    const auto readings = read(requests);
    std::vector<Coherence> out;
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto& subject = meter_.subjects()[requests[i].first];
      auto& one = out.emplace_back();
      one.concept_name = subject.concept_name;
      one.strength = requests[i].second;
      one.first_layer = subject.first_layer;
      one.last_layer = subject.last_layer;
      one.null_index = subject.null_index;
      one.perplexity = readings[i].perplexity();
      one.perplexity_base = base_->perplexity();
      one.repetition = readings[i].repetition;
      one.repetition_base = base_->repetition;
      one.texts = readings[i].texts;
      one.texts_base = base_->texts;
      one.is_coherent = one.perplexity <= options_.factor * one.perplexity_base &&
                        one.repetition <= one.repetition_base + options_.more_repetition;
    }
    return out;
  }

 private:
  struct Texts {
    double nats = 0.0;
    int64_t n_tokens = 0;
    double repetition = 0.0;
    std::vector<std::string> texts;
    double perplexity() const { return std::exp(nats / static_cast<double>(n_tokens)); }
  };
  /// One text that is to be drawn.
  struct Job {
    size_t request = 0;
    const Scene* scene = nullptr;
    const Ask* ask = nullptr;
    const Injection* injection = nullptr;  // nullptr: unsteered
    double strength = 0.0;
    Ids ids{};  // that were drawn
  };

  static DoseOptions quiet(DoseOptions options) {
    options.leak = options.sizes = options.later = false;
    return options;
  }

  graph::RunOptions run_options() const {
    graph::RunOptions out;
    out.memory_budget = options_.memory_budget;
    return out;
  }

  /// Of every request; the first time also of the unsteered model. All are drawn side by side: a step of a batch costs
  /// little more than one of a row.
  std::vector<Texts> read(const std::vector<DoseMeter::Request>& requests) {
    const at::NoGradGuard no_grad;
    std::vector<Job> jobs;
    const auto add = [&](size_t request, const Injection* injection, double strength) {
      for (const auto& scene : meter_.scenes())
        for (const auto& ask : scene.asks) jobs.push_back({request, &scene, &ask, injection, strength});
    };
    for (size_t i = 0; i < requests.size(); ++i)
      for (const auto& injection : meter_.subjects().at(requests[i].first).injections)
        add(i, &injection, requests[i].second);
    if (!base_) add(requests.size(), nullptr, 0.0);
    // Batches are padded to their longest.
    std::stable_sort(jobs.begin(), jobs.end(),
                     [](const Job& a, const Job& b) { return length(a) < length(b); });
    std::vector<Texts> out(requests.size() + 1);
    report(options_.progress, "texts", 0, static_cast<int64_t>(jobs.size()));
    for (size_t first = 0; first < jobs.size(); first += kMostRows) {
      const auto last = std::min(jobs.size(), first + kMostRows);
      draw(jobs, first, last);
      report(options_.progress, "texts", static_cast<int64_t>(last), static_cast<int64_t>(jobs.size()));
    }
    std::stable_sort(jobs.begin(), jobs.end(),
                     [](const Job& a, const Job& b) { return a.request < b.request; });
    score(jobs, out);
    for (const auto& job : jobs) {
      auto& texts = out[job.request];
      texts.repetition = std::max(texts.repetition, repetition(job.ids));
      texts.texts.push_back(model_->has_tokenizer() ? model_->tokenizer().decode(job.ids, true) : "");
    }
    if (!base_) base_ = out.back();
    out.pop_back();
    return out;
  }

  static int64_t length(const Job& job) {
    return job.scene->span_end() + static_cast<int64_t>(job.ask->after.size());
  }

  void draw(std::vector<Job>& jobs, size_t first, size_t last) {
    graph::Graph graph;
    std::vector<graph::ReadId> caches, residuals;
    for (size_t i = first; i < last; ++i) {
      const auto& job = jobs[i];
      const auto node = job.injection ? meter_.end(graph, *job.scene, *job.ask, *job.injection, job.strength)
                                      : meter_.end(graph, *job.scene, *job.ask);
      graph::Read cache, residual;
      cache.what = graph::Read::What::cache;
      residual.layers = {model_->cfg().n_layers - 1};
      caches.push_back(graph.read(node, cache));
      residuals.push_back(graph.read(node, residual));
    }
    const auto captured = graph.run(run_options());
    std::vector<Prompt> prompts;
    for (size_t i = first; i < last; ++i) {
      const auto& job = jobs[i];
      const bool steered = job.injection && job.ask->keeps_steering;
      auto tokens = job.scene->before;
      tokens.insert(tokens.end(), job.scene->injected.begin(), job.scene->injected.end());
      tokens.insert(tokens.end(), job.ask->after.begin(), job.ask->after.end());
      prompts.push_back({*captured.at(static_cast<size_t>(caches[i - first])).cache,
                         captured.at(static_cast<size_t>(residuals[i - first])).values[0][0],
                         std::move(tokens),
                         steered ? meter_.added(*job.scene, *job.injection, job.strength) : Directions{}, 0});
    }
    std::vector<Prompt*> batch;
    for (auto& prompt : prompts) batch.push_back(&prompt);
    Sampling greedy;
    greedy.max_new_tokens = options_.max_new_tokens;
    const auto drawn = continue_batch(*model_, batch, greedy);
    for (size_t i = first; i < last; ++i) jobs[i].ids = drawn[i - first];
  }

  /// Adds the negative log-probabilities of the texts' tokens by the unsteered model.
  void score(const std::vector<Job>& jobs, std::vector<Texts>& out) const {
    graph::Graph graph;
    std::map<graph::ReadId, std::vector<const Job*>> heads, bodies;
    for (const auto& job : jobs) {
      const auto node = meter_.end(graph, *job.scene, *job.ask);
      graph::Read head, body;
      head.layers = body.layers = {model_->cfg().n_layers - 1};
      heads[graph.read(node, head)].push_back(&job);
      out[job.request].n_tokens += static_cast<int64_t>(job.ids.size());
      if (job.ids.size() < 2) continue;
      body.positions.clear();
      for (size_t t = 0; t + 1 < job.ids.size(); ++t) body.positions.push_back(static_cast<int64_t>(t));
      bodies[graph.read(graph.segment(model_, job.ids, node), body)].push_back(&job);
    }
    const auto nats = [&](const torch::Tensor& resid_TD, Ids ids) {
      const auto logits_TV = model_->readout(resid_TD).to(torch::kCPU);
      const auto chosen_T = logits_TV.gather(-1, torch::tensor(ids, torch::kInt64).unsqueeze(-1)).squeeze(-1);
      return (ops::log_total(logits_TV) - chosen_T.to(torch::kFloat64)).sum().item<double>();
    };
    graph.run(run_options(), [&](const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured) {
      for (const auto& [id, values] : captured) {
        const auto resid_TD = values.values.select(1, 0);
        if (const auto found = heads.find(id); found != heads.end())
          for (const auto* job : found->second)
            if (!job->ids.empty()) out[job->request].nats += nats(resid_TD, {job->ids.front()});
        if (const auto found = bodies.find(id); found != bodies.end())
          for (const auto* job : found->second)
            out[job->request].nats += nats(resid_TD, {job->ids.begin() + 1, job->ids.end()});
      }
    });
  }

  static double repetition(const Ids& ids) {
    const auto total = static_cast<int64_t>(ids.size()) - kGram + 1;
    if (total <= 0) return 0.0;
    std::set<Ids> distinct;
    for (int64_t i = 0; i < total; ++i) distinct.insert({ids.begin() + i, ids.begin() + i + kGram});
    return 1.0 - static_cast<double>(distinct.size()) / static_cast<double>(total);
  }

  const graph::ModelPtr model_;
  const CoherenceOptions& options_;
  DoseMeter meter_;
  std::optional<Texts> base_;  // of the unsteered model
};

}  // namespace

double Coherence::score() const {
  return std::min(1.0, perplexity_base / perplexity) * (1.0 - std::max(0.0, repetition - repetition_base));
}

std::vector<Coherence> measure_coherence(const graph::ModelPtr& model, const DoseContext& context,
                                         const NamedVectors& vectors, const CoherenceOptions& options) {
  for (const auto strength : options.strengths)
    check<std::invalid_argument>(std::isfinite(strength), "measure_coherence: strengths must be finite, got ",
                                 strength);
  Reader reader("measure_coherence", model, context, vectors, options);
  const auto requests = reader.meter().requests();
  return requests.empty() ? std::vector<Coherence>{} : reader.measure(requests);
}

std::vector<CoherentWindow> coherent_windows(const graph::ModelPtr& model, const DoseContext& context,
                                             const NamedVectors& vectors, const CoherenceOptions& options) {
  Reader reader("coherent_window", model, context, vectors, options);
  const auto n = reader.meter().subjects().size();
  std::vector<std::map<double, Coherence>> tried(n);
  const auto measure = [&](const std::vector<DoseMeter::Request>& requests) {
    const auto measured = reader.measure(requests);
    for (size_t i = 0; i < requests.size(); ++i) tried[requests[i].first][requests[i].second] = measured[i];
  };
  const auto first_broken = [&](size_t subject) {
    return std::find_if(tried[subject].begin(), tried[subject].end(),
                        [](const auto& one) { return !one.second.is_coherent; });
  };
  const auto scale = [&](size_t subject) {
    const auto blocks = reader.meter().subjects()[subject].injections.front().directions.size();
    return reader.meter().scale(subject) / static_cast<double>(std::max<size_t>(1, blocks));
  };
  // Three at once, since a batch is cheaper than its rows. Whether there were any.
  const auto measure_three = [&](double at, const auto& is_wanted) {
    std::vector<DoseMeter::Request> requests;
    for (size_t subject = 0; subject < n; ++subject)
      if (is_wanted(subject))
        for (const double strength : {at, 2 * at, 4 * at})
          requests.emplace_back(subject, strength * scale(subject));
    if (!requests.empty()) measure(requests);
    return !requests.empty();
  };
  const auto is_whole = [&](size_t subject) { return first_broken(subject) == tried[subject].end(); };
  const auto is_broken = [&](size_t subject) { return first_broken(subject) == tried[subject].begin(); };
  measure_three(kUsual, is_whole);
  measure_three(kUsual / 8, is_broken);
  for (double at = 8 * kUsual; at <= kLargest && measure_three(at, is_whole); at *= 8) {
  }
  std::vector<DoseMeter::Request> between;
  for (size_t subject = 0; subject < n; ++subject) {
    const auto broken = first_broken(subject);
    const auto& of = reader.meter().subjects()[subject];
    check<Error>(broken != tried[subject].begin(), "coherent_window: the window of '", of.concept_name,
                 "' in blocks ", of.first_layer, " to ", of.last_layer,
                 " is empty: at the smallest strength tried, ", tried[subject].begin()->first,
                 ", the text's perplexity is ", tried[subject].begin()->second.perplexity, " (unsteered ",
                 tried[subject].begin()->second.perplexity_base, ") and its repetition ",
                 tried[subject].begin()->second.repetition, " (unsteered ",
                 tried[subject].begin()->second.repetition_base, ")");
    if (broken == tried[subject].end() || !options.fine) continue;
    const auto low = std::prev(broken)->first, high = broken->first;
    for (const double share : {0.25, 0.5, 0.75})
      between.emplace_back(subject, low * std::pow(high / low, share));
  }
  if (!between.empty()) measure(between);
  std::vector<CoherentWindow> out;
  for (size_t subject = 0; subject < n; ++subject) {
    const auto broken = first_broken(subject);
    auto& window = out.emplace_back();
    window.broken = broken == tried[subject].end() ? std::numeric_limits<double>::infinity() : broken->first;
    window.largest = std::prev(broken)->second;
    for (const auto& [strength, one] : tried[subject]) window.tried.push_back(one);
  }
  return out;
}

std::vector<OwnStrengths> strengths_of_doses(const graph::ModelPtr& model, const DoseContext& context,
                                             const NamedVectors& vectors,
                                             const std::vector<std::string>& targets,
                                             const CoherenceOptions& given) {
  check<std::invalid_argument>(!targets.empty(),
                               "strengths_of_doses: at least one target is needed, got none");
  for (const auto& target : targets)
    if (target != kCoherent) DoseTarget::parse(target);
  auto options = given;
  options.nulls = 0;
  options.null_vectors.clear();
  std::vector<OwnStrengths> out;
  const auto add = [&](const auto& found) {
    const auto same = std::find_if(out.begin(), out.end(), [&](const auto& own) {
      return own.concept_name == found.concept_name && own.first_layer == found.first_layer &&
             own.last_layer == found.last_layer;
    });
    auto& own =
        same == out.end()
            ? out.emplace_back(OwnStrengths{found.concept_name, found.first_layer, found.last_layer, {}})
            : *same;
    own.strengths.push_back(found.strength);
  };
  for (const auto& target : targets) {
    if (target == kCoherent)
      for (const auto& window : coherent_windows(model, context, vectors, options)) add(window.largest);
    else
      for (const auto& solved : solve_doses(model, context, vectors, DoseTarget::parse(target), options))
        add(solved.dose);
  }
  return out;
}

}  // namespace introspect::experiments
