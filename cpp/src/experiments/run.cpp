#include "introspect/experiments/run.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>

#include <ATen/Parallel.h>
#include <torch/torch.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/generate.h"
#include "introspect/version.h"

#include "experiments/plan.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kMostRows = 64;  // of one batch: beyond it nothing gets faster

std::string dtype_name(torch::ScalarType dtype) {
  switch (dtype) {
    case torch::kFloat64:
      return "float64";
    case torch::kFloat32:
      return "float32";
    case torch::kBFloat16:
      return "bfloat16";
    case torch::kFloat16:
      return "float16";
    default:
      return c10::toString(dtype);
  }
}

/// The identity of what is added to the residual stream.
std::string directions_hash(const Directions& directions) {
  Sha256 hash;
  for (const auto& [layer, direction] : directions) {
    const auto values = direction.contiguous();
    hash.update(concat(layer, ":")).update(values.const_data_ptr(), values.nbytes());
  }
  return hash.hex();
}

class Runner {
 public:
  Runner(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
         const ExperimentOptions& options)
      : model_(model),
        protocol_(protocol),
        options_(options),
        plan_(make_plan(model, protocol, vectors, options)),
        origin_{model.cfg().model_name,
                model.hash(),
                dtype_name(model.dtype()),
                model.device().str(),
                protocol.name,
                protocol.hash(),
                options.seed,
                options.strength_unit == StrengthUnit::absolute ? "absolute" : "residual",
                INTROSPECT_VERSION,
                INTROSPECT_BUILT_WITH_TORCH} {
    const auto steered = std::count_if(plan_.injections.begin(), plan_.injections.end(),
                                       [](const auto& injection) { return injection.strength != 0; });
    for (const auto& scene : plan_.scenes) total_ += static_cast<int64_t>(scene.asks.size()) * (1 + steered);
  }

  Result run() {
    const torch::NoGradGuard no_grad;
    for (const auto& scene : plan_.scenes) run_scene(scene);
    report(options_.progress, protocol_.name, total_, total_);
    return collect();
  }

 private:
  // ---- what is known --------------------------------------------------------------------------------------------

  nlohmann::ordered_json identity(const Scene& scene) const {
    return {
        {"version", INTROSPECT_VERSION},   {"model", model_.hash()}, {"dtype", dtype_name(model_.dtype())},
        {"device", model_.device().str()}, {"before", scene.before}, {"injected", scene.injected}};
  }

  std::string cell_key(const Scene& scene, const Ask& ask, const std::string& injection) const {
    auto json = identity(scene);
    json["added"] = injection;
    json["after"] = ask.after;
    json["keeps_steering"] = ask.keeps_steering;
    json["read"] = {plan_.yes_id, plan_.no_id, ask.report_ids};
    if (ask.samples) {
      const auto& sampling = protocol_.sampling;
      json["sampling"] = {sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k};
      if (sampling.temperature > 0) json["seed"] = options_.seed;
    }
    return sha256_hex(json.dump());
  }

  /// Whether the reading is known, now or from an earlier run.
  bool find(const std::string& key) {
    if (readings_.count(key) > 0) return true;
    const auto stored = options_.store ? options_.store->get(key) : std::nullopt;
    if (!stored) return false;
    readings_.emplace(key, Reading::from_json(*stored));
    return true;
  }

  Cell make_cell(const Scene& scene, const Ask& ask, const Injection* injection, std::string key,
                 const Reading& reading) const {
    Cell cell{std::move(key), reading.to_json()};
    cell.question = ask.question;
    cell.question_kind = ask.kind;
    cell.kind = "base";
    if (!injection) return cell;
    cell.base_key = cell_key(scene, ask, kNothing);
    cell.concept_name = injection->concept_name;
    cell.strength = injection->strength;
    cell.first_layer = injection->first_layer;
    cell.last_layer = injection->last_layer;
    cell.kind = injection->null_index < 0 ? ask.kind : "null";
    cell.null_index = injection->null_index;
    return cell;
  }

  // ---- running --------------------------------------------------------------------------------------------------

  /// A prefilled batch: everything up to the end of the injected messages.
  struct Prefilled {
    cache::KVCache cache;
    torch::Tensor last_logits_BV;      // defined where a question has nothing after the injected messages
    hooks::HookRegistry while_asking;  // where the vector stays on
    hooks::HookRegistry without;       // where it does not
  };

  /// A registry that tells the progress callback, between layers, that the run is alive.
  hooks::HookRegistry watched(const Scene& scene) const {
    auto registry = model_.make_hooks();
    if (!options_.progress) return registry;
    for (int64_t layer = 0; layer < model_.cfg().n_layers; ++layer)
      registry.observe(hooks::hook_name({hooks::Point::kResidPost, layer}),
                       [this, &scene](const torch::Tensor&, hooks::Site) { tell(scene); });
    return registry;
  }

  void tell(const Scene& scene) const {
    report(options_.progress,
           concat(protocol_.name, scene.asks.front().kind == "control" ? " (controls)" : ""), done_, total_);
  }

  void forward(const Ids& ids, cache::KVCache& cache, const hooks::HookRegistry& registry,
               torch::Tensor* last_logits_BV) const {
    models::ForwardOptions pass;
    pass.cache = &cache;
    pass.hooks = &registry;
    pass.logits_at = last_logits_BV ? models::LogitsAt::kLast : models::LogitsAt::kNone;
    const auto tokens_BT =
        torch::tensor(ids, torch::kInt64).unsqueeze(0).expand({cache.shape().batch, -1}).contiguous();
    const auto logits = model_.forward(tokens_BT, pass);
    if (last_logits_BV) *last_logits_BV = logits.squeeze(1);
  }

  cache::KVCache prefill_before(const Scene& scene) const {
    auto cache = model_.make_cache(1);
    if (!scene.before.empty()) forward(scene.before, cache, watched(scene), nullptr);
    return cache;
  }

  Prefilled prefill_injected(const Scene& scene, const cache::KVCache& before,
                             const std::vector<Directions>& rows, const hooks::HookRegistry& watch) const {
    const auto n_rows = static_cast<int64_t>(rows.size());
    Prefilled out{scene.before.empty() ? model_.make_cache(n_rows) : before.select_rows(Ids(rows.size(), 0)),
                  {},
                  watch,
                  watch};
    out.cache.reserve(scene.longest(protocol_.sampling.max_new_tokens));

    hooks::Intervention added;
    added.first_position = scene.span_begin();
    for (size_t row = 0; row < rows.size(); ++row)
      for (const auto& [layer, direction] : rows[row]) {
        auto& all = added.values[layer];
        if (!all.defined()) all = torch::zeros({n_rows, model_.cfg().d_model});
        all[static_cast<int64_t>(row)] = direction;
      }
    for (auto& [layer, direction] : added.values) direction = direction.to(model_.device());
    if (!added.values.empty()) out.while_asking.add(added);
    const bool read_here =
        std::any_of(scene.asks.begin(), scene.asks.end(), [](const auto& ask) { return ask.after.empty(); });
    // Every token of this pass is injected, so the registry that keeps the vector on is the one to use.
    forward(scene.injected, out.cache, out.while_asking, read_here ? &out.last_logits_BV : nullptr);
    return out;
  }

  std::vector<Reading> ask(const Scene& scene, const Ask& ask, const Prefilled& prefilled) const {
    auto cache = prefilled.cache.fork();
    const auto& registry = ask.keeps_steering ? prefilled.while_asking : prefilled.without;
    auto logits_BV = prefilled.last_logits_BV;
    if (!ask.after.empty()) forward(ask.after, cache, registry, &logits_BV);
    std::vector<Reading> out;
    for (int64_t row = 0; row < logits_BV.size(0); ++row) out.push_back(read(logits_BV[row], ask));
    if (ask.samples) {
      const auto texts = sample(scene, ask, cache, logits_BV, registry);
      for (size_t row = 0; row < out.size(); ++row) out[row].text = texts[row];
    }
    return out;
  }

  Reading read(const torch::Tensor& logits, const Ask& ask) const {
    const auto logits_V = logits.to(torch::kCPU, torch::kFloat64);
    const auto log_probs_V = logits_V.log_softmax(0);
    const auto* const logit = logits_V.const_data_ptr<double>();
    const auto* const log_prob = log_probs_V.const_data_ptr<double>();
    Reading out;
    out.log_odds = logit[plan_.yes_id] - logit[plan_.no_id];
    out.p_yes = std::exp(log_prob[plan_.yes_id]);
    out.p_no = std::exp(log_prob[plan_.no_id]);
    for (const auto id : ask.report_ids) {
      const auto above =
          std::count_if(logit, logit + logits_V.numel(), [&](double other) { return other > logit[id]; });
      out.tokens.push_back({model_.tokenizer().decode(Ids{id}), id, log_prob[id], above + 1});
    }
    return out;
  }

  std::vector<std::string> sample(const Scene& scene, const Ask& ask, const cache::KVCache& cache,
                                  const torch::Tensor& logits_BV, const hooks::HookRegistry& registry) const {
    models::GenerateOptions how;
    how.max_new_tokens = protocol_.sampling.max_new_tokens;
    how.temperature = protocol_.sampling.temperature;
    how.top_p = protocol_.sampling.top_p;
    how.top_k = protocol_.sampling.top_k;
    how.seed = options_.seed;
    how.hooks = &registry;
    Ids context = scene.before;
    context.insert(context.end(), scene.injected.begin(), scene.injected.end());
    context.insert(context.end(), ask.after.begin(), ask.after.end());
    auto continued = cache.fork();
    const std::vector<Ids> contexts(static_cast<size_t>(logits_BV.size(0)), context);
    std::vector<std::string> texts;
    for (const auto& ids : models::generate_from(model_, continued, logits_BV, contexts, how))
      texts.push_back(model_.tokenizer().decode(ids, /*skip_special_tokens=*/true));
    return texts;
  }

  /// One row of a batch; no injection is the un-steered run.
  struct BatchRow {
    Directions added;
    std::string hash;
    const Injection* injection = nullptr;
  };

  /// Runs what is not known of the scene for these rows, and keeps each reading as it comes.
  void run_rows(const Scene& scene, const cache::KVCache& before, const std::vector<BatchRow>& rows,
                const hooks::HookRegistry& watch) {
    std::vector<Directions> added;
    for (const auto& row : rows) added.push_back(row.added);
    const auto prefilled = prefill_injected(scene, before, added, watch);
    for (const auto& question : scene.asks) {
      std::vector<std::string> keys;
      for (const auto& row : rows) keys.push_back(cell_key(scene, question, row.hash));
      if (std::all_of(keys.begin(), keys.end(), [this](const auto& key) { return find(key); })) continue;
      auto readings = ask(scene, question, prefilled);
      std::vector<Cell> cells;
      for (size_t row = 0; row < keys.size(); ++row) {
        if (find(keys[row])) continue;
        cells.push_back(make_cell(scene, question, rows[row].injection, keys[row], readings[row]));
        readings_.emplace(keys[row], std::move(readings[row]));
        ++done_;
      }
      if (options_.store) options_.store->put_many(cells, origin_);
      tell(scene);
    }
  }

  int64_t count_known(const Scene& scene, const std::string& hash) {
    return std::count_if(scene.asks.begin(), scene.asks.end(),
                         [&](const auto& question) { return find(cell_key(scene, question, hash)); });
  }

  void run_scene(const Scene& scene) {
    std::optional<cache::KVCache> before;
    const auto get_before = [&]() -> const cache::KVCache& {
      if (!before) before = prefill_before(scene);
      return *before;
    };
    const auto n_asks = static_cast<int64_t>(scene.asks.size());

    std::map<int64_t, double> norms;
    const bool need_norms = options_.strength_unit == StrengthUnit::residual;
    const bool have_norms = !need_norms || find_norms(scene, norms);
    const auto known = count_known(scene, kNothing);
    done_ += known;
    tell(scene);
    if (known < n_asks || !have_norms) {
      auto watch = watched(scene);
      if (!have_norms) record_norms(scene, watch, norms);
      run_rows(scene, get_before(), {{{}, kNothing, nullptr}}, watch);
      if (!have_norms && options_.store) {
        Cell cell{norms_key(scene), nlohmann::json(norms).dump()};
        cell.kind = "norms";
        options_.store->put(cell, origin_);
      }
    }

    std::vector<BatchRow> rows;
    const auto flush = [&] {
      if (!rows.empty()) run_rows(scene, get_before(), rows, watched(scene));
      rows.clear();
    };
    for (const auto& injection : plan_.injections) {
      if (injection.strength == 0) continue;
      auto added = scaled(injection, norms);
      auto hash = directions_hash(added);
      const auto found = count_known(scene, hash);
      done_ += found;
      added_[{&scene, &injection}] = hash;
      const auto is_same = [&](const BatchRow& row) { return row.hash == hash; };
      if (found == n_asks || std::any_of(rows.begin(), rows.end(), is_same)) continue;
      rows.push_back({std::move(added), std::move(hash), &injection});
      if (static_cast<int64_t>(rows.size()) >= most_rows(scene)) flush();
    }
    flush();
  }

  // ---- strengths ------------------------------------------------------------------------------------------------

  Directions scaled(const Injection& injection, const std::map<int64_t, double>& norms) const {
    auto out = injection.directions;
    for (auto& [layer, direction] : out) {
      auto factor = injection.strength;
      const auto length = direction.norm().item<double>();
      if (options_.strength_unit == StrengthUnit::residual && length > 0) factor *= norms.at(layer) / length;
      direction = direction * factor;
    }
    return out;
  }

  std::string norms_key(const Scene& scene) const {
    auto json = identity(scene);
    json["read"] = "mean residual norms";
    return sha256_hex(json.dump());
  }

  bool find_norms(const Scene& scene, std::map<int64_t, double>& norms) const {
    const auto stored = options_.store ? options_.store->get(norms_key(scene)) : std::nullopt;
    if (stored) nlohmann::json::parse(*stored).get_to(norms);
    return stored.has_value();
  }

  /// Notes, while a pass runs, the mean norm of the residual stream after each block over the injected tokens.
  void record_norms(const Scene& scene, hooks::HookRegistry& registry,
                    std::map<int64_t, double>& norms) const {
    const auto n_injected = static_cast<int64_t>(scene.injected.size());
    const int64_t skipped = scene.before.empty() && n_injected > 1 ? 1 : 0;
    for (int64_t layer = 0; layer < model_.cfg().n_layers; ++layer)
      registry.observe(hooks::hook_name({hooks::Point::kResidPost, layer}),
                       [&norms, skipped](const torch::Tensor& x_BTD, hooks::Site site) {
                         // The first pass under this registry is the injected span; the questions come after it.
                         if (norms.count(site.layer) == 0)
                           norms[site.layer] =
                               x_BTD.slice(1, skipped).to(torch::kFloat32).norm(2, -1).mean().item<double>();
                       });
  }

  /// How many injections fit side by side: caches (a fork may copy its own), the layers' activations, the logits.
  int64_t most_rows(const Scene& scene) const {
    // Draws depend on the row's number, and which injections are neighbours is an accident: each is row 0.
    if (protocol_.sampling.temperature > 0) return 1;
    const auto& cfg = model_.cfg();
    const auto element = static_cast<int64_t>(torch::elementSize(model_.dtype()));
    const auto cache = scene.longest(protocol_.sampling.max_new_tokens) * cfg.n_layers * 4 *
                       cfg.n_key_value_heads * cfg.d_head * element;
    const auto activations =
        static_cast<int64_t>(scene.injected.size()) * (3 * cfg.d_mlp + 6 * cfg.d_model) * element;
    const auto logits = cfg.d_vocab * 3 * static_cast<int64_t>(sizeof(float));
    return std::clamp<int64_t>(options_.batch_bytes / (cache + activations + logits), 1, kMostRows);
  }

  // ---- the result -----------------------------------------------------------------------------------------------

  Result collect() const {
    Result out;
    const auto& cfg = model_.cfg();
    out.model = {cfg.model_name,
                 model_.hash(),
                 cfg.original_architecture,
                 cfg.n_layers,
                 dtype_name(model_.dtype()),
                 model_.device().str()};
    out.protocol = {protocol_.name, protocol_.hash(), to_string(protocol_.read), protocol_.yes_token,
                    protocol_.no_token};
    const bool absolute = options_.strength_unit == StrengthUnit::absolute;
    out.settings = {options_.seed,         options_.nulls,     absolute ? "absolute" : "residual",
                    at::get_num_threads(), INTROSPECT_VERSION, INTROSPECT_BUILT_WITH_TORCH};
    out.warnings = plan_.warnings;
    for (const auto& injection : plan_.injections)
      for (const auto& scene : plan_.scenes)
        for (const auto& question : scene.asks) {
          const auto& base = readings_.at(cell_key(scene, question, kNothing));
          const auto& injected =
              injection.strength == 0
                  ? base
                  : readings_.at(cell_key(scene, question, added_.at({&scene, &injection})));
          out.rows.push_back({injection.concept_name, injection.strength, injection.first_layer,
                              injection.last_layer, question.question, question.kind,
                              injection.null_index < 0 ? question.kind : "null", injection.null_index, base,
                              injected});
        }
    return out;
  }

  inline static const std::string kNothing = "nothing";  // in place of the hash of what is added

  const models::Model& model_;
  const Protocol& protocol_;
  const ExperimentOptions& options_;
  const Plan plan_;
  const Origin origin_;
  std::map<std::string, Reading> readings_;                                 // by cell key
  std::map<std::pair<const Scene*, const Injection*>, std::string> added_;  // directions_hash
  int64_t done_ = 0, total_ = 0;                                            // readings
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

Result run_experiment(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options) {
  return Runner(model, protocol, vectors, options).run();
}

}  // namespace introspect::experiments
