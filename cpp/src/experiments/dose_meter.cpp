#include "experiments/dose_meter.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <stdexcept>
#include <tuple>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/ops/logits.h"
#include "introspect/steering/residual_norms.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{64} << 20;  // of one chunk of logits
constexpr int64_t kMostTokens = 1'000'000;          // of one graph
// Median norms from which on a token's residual is no part of the natural ones. Massive activations are tens of times as
// long (Qwen2.5 0.5B: the first token, and three line breaks of the template at 17), others at most twice.
constexpr double kMassive = 5.0;

/// Logits [T, V] with the logarithm of their exponentials' sum, float64 [T].
struct Logits {
  torch::Tensor values_TV, total_T;
};

Logits logits_of(const models::Model& model, const torch::Tensor& resid_TD) {
  const auto values_TV = model.readout(resid_TD).to(torch::kCPU);
  return {values_TV, ops::log_total(values_TV)};
}

/// Of these tokens together, summed over the rows.
double probability(const Logits& logits, const torch::Tensor& ids) {
  const auto chosen = logits.values_TV.index_select(-1, ids).to(torch::kFloat64);
  return (chosen - logits.total_T.unsqueeze(-1)).exp().sum().item<double>();
}

graph::Read all_tokens(int64_t n, std::vector<int64_t> layers) {
  graph::Read out;
  out.positions.resize(static_cast<size_t>(n));
  std::iota(out.positions.begin(), out.positions.end(), int64_t{0});
  out.layers = std::move(layers);
  return out;
}

int64_t size(const Ids& ids) {
  return static_cast<int64_t>(ids.size());
}

/// The positions of `scene.injected` whose median norm a residual strength is a fraction of, as run_experiment has them.
std::vector<int64_t> measured_positions(const Scene& scene) {
  std::vector<int64_t> out;
  for (const auto& [first, last] : scene.spans)
    for (int64_t t = first; t < last; ++t) out.push_back(t);
  if (scene.before.empty() && out.size() > 1 && out.front() == 0) out.erase(out.begin());
  return out;
}

const std::vector<hooks::Intervention> kNothing;

/// The injected tokens and those between them: [first, last) of scene.injected, and whether they are injected.
std::vector<std::tuple<int64_t, int64_t, bool>> pieces_of(const Scene& scene, const Injection& injection) {
  std::vector<std::tuple<int64_t, int64_t, bool>> out;
  int64_t done = 0;
  for (const auto& [first, last] : reached(scene, injection)) {
    if (done < first) out.emplace_back(done, first, false);
    out.emplace_back(first, last, true);
    done = last;
  }
  if (done < size(scene.injected)) out.emplace_back(done, size(scene.injected), false);
  return out;
}

}  // namespace

DoseMeter::DoseMeter(const std::string& who, graph::ModelPtr model, const DoseContext& context,
                     const NamedVectors& vectors, const DoseOptions& options)
    : model_(std::move(model)), options_(options) {
  check<std::invalid_argument>(!vectors.empty(), who, ": at least one vector is needed, got none");
  if (context.protocol)
    design_of_protocol(who, *context.protocol, vectors);
  else
    design_of_prompts(who, context.prompts, vectors);
  find_subjects(context.protocol ? &*context.protocol : nullptr);
  run_base();
}

void DoseMeter::design_of_protocol(const std::string& who, const Protocol& protocol,
                                   const NamedVectors& vectors) {
  check<ConfigError>(protocol.inject == Inject::vector || protocol.inject == Inject::random, who,
                     ": protocol '", protocol.name, "' must inject vectors, it injects by ",
                     to_string(protocol.inject));
  ExperimentOptions experiment;
  experiment.strengths = {1.0};
  experiment.strength_unit = options_.strength_unit;
  experiment.layers = options_.layers;
  experiment.parts = {options_.part};
  experiment.questions = std::vector<std::string>{};
  experiment.nulls = options_.nulls;
  experiment.null_vectors = options_.null_vectors;
  experiment.seed = options_.seed;
  design_ = make_design(*model_, protocol, vectors, with_defaults(std::move(experiment)));
}

void DoseMeter::design_of_prompts(const std::string& who, const std::vector<Ids>& prompts,
                                  const NamedVectors& vectors) {
  const auto& cfg = model_->cfg();
  check<std::invalid_argument>(!prompts.empty(), who, ": at least one prompt is needed, got none");
  check<std::invalid_argument>(options_.nulls == 0 && options_.null_vectors.empty(), who,
                               ": rotations are of protocols, got prompts and ", options_.nulls, " nulls");
  for (const auto& prompt : prompts) {
    check<std::invalid_argument>(!prompt.empty(), who, ": a prompt must have tokens, got none");
    Ask ask;
    ask.keeps_steering = true;
    design_.scenes.push_back({{}, prompt, {{0, size(prompt)}}, {std::move(ask)}, {}});
  }
  for (const auto& [name, vector] : vectors) {
    check<ShapeError>(vector.d_model() == cfg.d_model, who, ": vector '", name,
                      "' must be as wide as the model (", cfg.d_model, "), got ", vector.d_model());
    for (const auto& range : options_.layers) {
      const auto [first, last] = range.resolve(cfg.n_layers);
      design_.injections.push_back({{name, 1.0, first, last, -1, -1, options_.part.first, options_.part.last},
                                    steering::directions_in(vector, cfg.n_layers, first, last)});
    }
  }
}

void DoseMeter::find_subjects(const Protocol* protocol) {
  for (const auto& injection : design_.injections) {
    if (injection.place <= 0) {
      subjects_.push_back({injection.concept_name,
                           injection.first_layer,
                           injection.last_layer,
                           injection.null_index,
                           {},
                           {}});
      auto word = injection.concept_name;
      if (protocol && protocol->report_tokens.count(word) > 0) word = protocol->report_tokens.at(word);
      if (options_.leak && !word.empty() && model_->has_tokenizer()) {
        const std::set<int64_t> ids{first_token(model_->tokenizer(), word),
                                    first_token(model_->tokenizer(), " " + word)};
        subjects_.back().word.assign(ids.begin(), ids.end());
      }
    }
    subjects_.back().injections.push_back(injection);
  }
}

size_t DoseMeter::vector_of(size_t subject) const {
  const auto& of = subjects_.at(subject);
  for (size_t i = subject + 1; i-- > 0;) {
    const auto& one = subjects_[i];
    if (one.null_index < 0 && one.concept_name == of.concept_name && one.first_layer == of.first_layer &&
        one.last_layer == of.last_layer)
      return i;
  }
  throw std::logic_error("dose: a null without its vector");
}

double DoseMeter::strength(size_t subject, size_t place) const {
  const auto& of = subjects_.at(subject);
  for (const auto& own : options_.own_strengths)
    if (own.concept_name == of.concept_name && own.first_layer == of.first_layer &&
        own.last_layer == of.last_layer)
      return own.strengths.at(place);
  return options_.strengths.at(place);
}

std::vector<DoseMeter::Request> DoseMeter::requests() const {
  std::vector<Request> out;
  for (size_t subject = 0; subject < subjects_.size(); ++subject)
    for (size_t place = 0; place < options_.strengths.size(); ++place)
      out.emplace_back(subject, strength(subject, place));
  return out;
}

graph::RunOptions DoseMeter::run_options() const {
  graph::RunOptions out;
  out.memory_budget = options_.memory_budget;
  return out;
}

void DoseMeter::run_base() {
  const at::NoGradGuard no_grad;
  std::set<int64_t> layers{model_->cfg().n_layers - 1};
  for (const auto& subject : subjects_) {
    layers.insert(subject.last_layer);
    for (const auto& [layer, direction] : subject.injections.front().directions) layers.insert(layer);
  }
  base_layers_.assign(layers.begin(), layers.end());

  graph::Graph graph;
  std::vector<std::pair<graph::ReadId, std::pair<const Scene*, int64_t>>>
      reads;  // ask -2: what stands before
  for (const auto& scene : design_.scenes) {
    std::optional<graph::NodeId> at;
    const auto read = [&](const Ids& ids, int64_t ask) {
      const auto node = graph.segment(model_, ids, at);
      reads.emplace_back(graph.read(node, all_tokens(size(ids), base_layers_)), std::pair(&scene, ask));
      return node;
    };
    if (!scene.before.empty()) at = read(scene.before, -2);
    at = read(scene.injected, -1);
    for (size_t ask = 0; ask < scene.asks.size(); ++ask)
      if ((options_.later || ask == 0) && !scene.asks[ask].after.empty())
        read(scene.asks[ask].after, static_cast<int64_t>(ask));
  }
  const auto captured = graph.run(run_options());
  std::map<graph::ReadId, size_t> place;
  for (const auto& [id, of] : reads) place.emplace(id, place.size());
  for (const auto& [id, of] : reads) base_[of] = captured.at(place.at(id)).values;

  for (const auto& scene : design_.scenes) {
    const auto positions = torch::tensor(measured_positions(scene), torch::kInt64);
    const auto injected = base_.at({&scene, -1}).index_select(0, positions);
    for (size_t i = 0; i < base_layers_.size(); ++i) {
      const auto norm = steering::median_norm(injected.select(1, static_cast<int64_t>(i)));
      check<Error>(std::isfinite(norm), "dose: the unsteered residual stream is not finite after block ",
                   base_layers_[i], "; a wider dtype may help");
      norms_[&scene][base_layers_[i]] = norm;
    }
  }
  if (!options_.sizes) return;
  std::vector<torch::Tensor> texts;  // [tokens, layers, D]: every scene's, with its first question
  for (const auto& scene : design_.scenes) {
    std::vector<torch::Tensor> parts;
    for (const int64_t part : {-2, -1, 0})
      if (const auto found = base_.find({&scene, part}); found != base_.end()) parts.push_back(found->second);
    texts.push_back(at::cat(parts).slice(0, 1));
  }
  const auto natural = at::cat(texts);
  for (size_t i = 0; i < base_layers_.size(); ++i) {
    const auto all_TD = natural.select(1, static_cast<int64_t>(i)).to(torch::kFloat64);
    const auto norms_T = all_TD.norm(2, -1);
    const auto x_TD = all_TD.index({norms_T <= kMassive * norms_T.median()});
    natural_[base_layers_[i]] = x_TD - x_TD.mean(0);
  }
}

double DoseMeter::factor(const Scene& scene, int64_t layer, const torch::Tensor& direction) const {
  if (options_.strength_unit == StrengthUnit::absolute) return 1.0;
  const auto length = direction.norm().item<double>();
  return length > 0 ? norms_.at(&scene).at(layer) / length : 1.0;
}

std::vector<hooks::Intervention> DoseMeter::interventions(const Scene& scene, const Injection& injection,
                                                          double strength) const {
  std::vector<hooks::Intervention> out;
  for (const auto& [layer, direction] : injection.directions) {
    auto& one = out.emplace_back();
    one.values[layer] = direction;
    one.strength = strength * injection.strength * factor(scene, layer, direction);
  }
  return out;
}

Directions DoseMeter::added(const Scene& scene, const Injection& injection, double strength) const {
  Directions out;
  for (const auto& [layer, direction] : injection.directions)
    out[layer] = direction * (strength * injection.strength * factor(scene, layer, direction));
  return out;
}

graph::NodeId DoseMeter::end(graph::Graph& graph, const Scene& scene, const Ask& ask) const {
  auto at = scene.before.empty() ? std::nullopt : std::optional(graph.segment(model_, scene.before));
  at = graph.segment(model_, scene.injected, at);
  return ask.after.empty() ? *at : graph.segment(model_, ask.after, at);
}

graph::NodeId DoseMeter::end(graph::Graph& graph, const Scene& scene, const Ask& ask,
                             const Injection& injection, double strength) const {
  auto at = scene.before.empty() ? std::nullopt : std::optional(graph.segment(model_, scene.before));
  const auto steering = interventions(scene, injection, strength);
  for (const auto& [first, last, is_injected] : pieces_of(scene, injection))
    at = graph.segment(model_, {scene.injected.begin() + first, scene.injected.begin() + last}, at,
                       is_injected ? steering : kNothing);
  return ask.after.empty() ? *at
                           : graph.segment(model_, ask.after, at, ask.keeps_steering ? steering : kNothing);
}

double DoseMeter::scale(size_t subject) const {
  const auto& injection = subjects_.at(subject).injections.front();
  std::vector<double> ratios;
  for (const auto& [layer, direction] : injection.directions) {
    const auto length = direction.norm().item<double>();
    if (options_.strength_unit == StrengthUnit::residual)
      ratios.push_back(1.0);
    else if (length > 0)
      ratios.push_back(norms_.at(&design_.scenes.front()).at(layer) / length);
  }
  if (ratios.empty() || injection.strength == 0) return 1.0;
  std::nth_element(ratios.begin(), ratios.begin() + static_cast<int64_t>(ratios.size() / 2), ratios.end());
  return ratios[ratios.size() / 2] / std::abs(injection.strength);
}

void DoseMeter::measure_sizes(size_t subject, double strength, Dose& dose) const {
  double along = 0, overall = 0, relative = 0;
  const auto& scene = design_.scenes.front();
  const auto added_to = added(scene, subjects_.at(subject).injections.front(), strength);
  for (const auto& [layer, direction] : added_to) {
    const auto added_D = direction.to(torch::kCPU, torch::kFloat64);
    const auto length = added_D.norm().item<double>();
    relative += length / norms_.at(&scene).at(layer);
    if (!options_.sizes) continue;
    const auto& x_TD = natural_.at(layer);
    const auto n = static_cast<double>(x_TD.size(0));
    if (length > 0) along += length / (x_TD.mv(added_D / length).norm().item<double>() / std::sqrt(n));
    overall += length / (x_TD.norm().item<double>() / std::sqrt(n * static_cast<double>(x_TD.size(1))));
  }
  const auto blocks = static_cast<double>(added_to.size());
  dose.relative = relative / blocks;
  if (!options_.sizes) return;
  dose.sd = along / blocks;
  dose.sd_overall = overall / blocks;
}

std::vector<int64_t> DoseMeter::layers_read(const DoseSubject& subject) const {
  const auto last = model_->cfg().n_layers - 1;
  if (subject.word.empty() || subject.last_layer == last) return {last};
  return {subject.last_layer, last};
}

void DoseMeter::put(graph::Graph& graph, size_t request, size_t subject, double strength,
                    std::map<graph::ReadId, std::vector<DosePiece>>& pieces) const {
  const auto layers = layers_read(subjects_.at(subject));
  const auto read = [&](graph::NodeId node, DosePiece piece) {
    pieces[graph.read(node, all_tokens(piece.size, layers))].push_back(piece);
  };
  for (const auto& injection : subjects_.at(subject).injections)
    for (const auto& scene : design_.scenes) {
      auto at = scene.before.empty() ? std::nullopt : std::optional(graph.segment(model_, scene.before));
      const auto steering = interventions(scene, injection, strength);
      bool is_later = false;  // what stands before the first injected token is the unsteered run's
      for (const auto& [first, last, is_injected] : pieces_of(scene, injection)) {
        at = graph.segment(model_, {scene.injected.begin() + first, scene.injected.begin() + last}, at,
                           is_injected ? steering : kNothing);
        if (is_injected || (is_later && options_.later))
          read(*at, {request, &scene, -1, first, last - first, is_injected});
        is_later |= is_injected;
      }
      if (!options_.later) continue;
      for (size_t ask = 0; ask < scene.asks.size(); ++ask) {
        const auto& after = scene.asks[ask].after;
        if (after.empty()) continue;
        const auto node =
            graph.segment(model_, after, at, scene.asks[ask].keeps_steering ? steering : kNothing);
        read(node, {request, &scene, static_cast<int64_t>(ask), 0, size(after), /*is_injected=*/false});
      }
    }
}

/// Pieces of the same tokens are compared with one readout of the unsteered run.
void DoseMeter::tally(const Alike& alike, const std::vector<Request>& requests,
                      std::vector<Tally>& tallies) const {
  const auto* const scene = alike.front().first->scene;
  const auto ask = alike.front().first->ask, first = alike.front().first->first,
             n = alike.front().first->size;
  const auto base_TLD = base_.at({scene, ask}).narrow(0, first, n);
  const auto column = [&](int64_t layer) {
    return std::lower_bound(base_layers_.begin(), base_layers_.end(), layer) - base_layers_.begin();
  };
  const auto ends_conversation = [&](int64_t last) {
    if (ask >= 0) return last == n;
    const bool asks_nothing = std::any_of(scene->asks.begin(), scene->asks.end(),
                                          [](const auto& one) { return one.after.empty(); });
    return asks_nothing && first + last == size(scene->injected);
  };
  const auto rows = std::max<int64_t>(1, kLogitBytes / (4 * model_->cfg().d_vocab));
  for (int64_t begin = 0; begin < n; begin += rows) {
    const auto count = std::min(rows, n - begin);
    const auto base = logits_of(*model_, base_TLD.narrow(0, begin, count).select(1, -1));
    std::map<int64_t, Logits> base_lens;  // by block
    for (const auto& [piece, resid_TLD] : alike) {
      auto& sums = tallies[piece->request];
      const auto& subject = subjects_[requests[piece->request].first];
      const auto chunk_TLD = resid_TLD.narrow(0, begin, count);
      const auto steered_TV = model_->readout(chunk_TLD.select(1, -1)).to(torch::kCPU);
      const auto kl_T = ops::kl_divergence(steered_TV, base.values_TV, base.total_T);
      (piece->is_injected ? sums.kl : sums.kl_later).add(kl_T.sum().item<double>(), count);
      if (ends_conversation(begin + count)) sums.kl_read.add(kl_T[-1].item<double>(), 1);
      if (!piece->is_injected || subject.word.empty()) continue;
      const auto ids = torch::tensor(subject.word, torch::kInt64);
      const Logits steered{steered_TV, ops::log_total(steered_TV)};
      sums.next.add(probability(steered, ids), count);
      sums.next_base.add(probability(base, ids), count);
      auto& lens = base_lens[subject.last_layer];
      if (!lens.values_TV.defined())
        lens = logits_of(*model_, base_TLD.narrow(0, begin, count).select(1, column(subject.last_layer)));
      sums.leak_base.add(probability(lens, ids), count);
      const bool is_last = resid_TLD.size(1) == 1;
      sums.leak.add(probability(is_last ? steered : logits_of(*model_, chunk_TLD.select(1, 0)), ids), count);
    }
  }
}

std::vector<Dose> DoseMeter::measure(const std::vector<Request>& requests) {
  const at::NoGradGuard no_grad;
  std::vector<Tally> tallies(requests.size());
  int64_t per_request = 0;
  for (const auto& scene : design_.scenes) per_request += scene.longest(0);
  const auto at_once =
      static_cast<size_t>(std::max<int64_t>(1, kMostTokens / std::max<int64_t>(1, per_request)));
  for (size_t from = 0; from < requests.size(); from += at_once) {
    const auto to = std::min(requests.size(), from + at_once);
    graph::Graph graph;
    std::map<graph::ReadId, std::vector<DosePiece>> pieces;
    for (size_t i = from; i < to; ++i) put(graph, i, requests[i].first, requests[i].second, pieces);
    int64_t n_read = 0;
    graph.run(run_options(), [&](const std::vector<std::pair<graph::ReadId, engine::Captured>>& captured) {
      std::map<std::tuple<const Scene*, int64_t, int64_t, int64_t>, Alike> by_place;
      for (const auto& [id, values] : captured)
        for (const auto& piece : pieces.at(id))
          by_place[{piece.scene, piece.ask, piece.first, piece.size}].emplace_back(&piece, values.values);
      for (const auto& [place, alike] : by_place) tally(alike, requests, tallies);
      n_read += static_cast<int64_t>(captured.size());
      const auto share =
          static_cast<double>(n_read) / static_cast<double>(std::max<int64_t>(1, graph.n_reads()));
      report(options_.progress, "doses",
             static_cast<int64_t>(from) + static_cast<int64_t>(share * static_cast<double>(to - from)),
             static_cast<int64_t>(requests.size()));
    });
  }
  std::vector<Dose> out;
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto& [place, strength] = requests[i];
    const auto& subject = subjects_[place];
    auto& dose = out.emplace_back();
    dose.concept_name = subject.concept_name;
    dose.strength = strength;
    dose.first_layer = subject.first_layer;
    dose.last_layer = subject.last_layer;
    dose.null_index = subject.null_index;
    const auto& sums = tallies[i];
    dose.kl = sums.kl.mean();
    dose.kl_later = sums.kl_later.mean();
    dose.kl_read = sums.kl_read.mean();
    dose.leak = sums.leak.mean();
    dose.leak_base = sums.leak_base.mean();
    dose.next = sums.next.mean();
    dose.next_base = sums.next_base.mean();
    measure_sizes(place, strength, dose);
  }
  return out;
}

}  // namespace introspect::experiments
