#include "introspect/analysis/refusal_direction.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include <torch/types.h>

#include "introspect/activations/collect_positions.h"
#include "introspect/core/check.h"
#include "introspect/graph/graph.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;
using ModelPtr = std::shared_ptr<const models::Model>;
using Tokens = std::vector<std::vector<int64_t>>;

constexpr double kEpsilon = 1e-8;  // of probabilities, as in refusal_direction

/// r / |r| in float64 on the CPU.
Tensor unit_direction(const std::string& who, const models::Model& model, const Tensor& direction_D) {
  const int64_t D = model.cfg().d_model;
  check<ShapeError>(direction_D.dim() == 1 && direction_D.size(0) == D && direction_D.is_floating_point(),
                    who, ": the direction must be [", D, "] of a float dtype, got ", direction_D.sizes());
  const auto v_D = direction_D.detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  check<std::invalid_argument>(v_D.isfinite().all().item<bool>() && (v_D != 0).any().item<bool>(), who,
                               ": the direction must be finite and not zero");
  return v_D / v_D.norm();
}

Tokens tokenized(const std::string& who, const models::Model& model, const std::vector<std::string>& texts) {
  check<std::invalid_argument>(!texts.empty(), who, ": there must be texts, got none");
  Tokens out;
  for (const auto& text : texts) {
    const auto ids = model.to_tokens(text).flatten();
    check<std::invalid_argument>(ids.numel() > 0, who, ": every text must have tokens");
    out.emplace_back(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + ids.numel());
  }
  return out;
}

/// Log-probabilities of the next token of every text, one list a set of interventions, float64 [texts, V].
std::vector<Tensor> next_tokens(const ModelPtr& model,
                                const std::vector<std::vector<hooks::Intervention>>& sets,
                                const Tokens& texts, const DirectionSearchOptions& options) {
  graph::Graph graph;
  engine::Read last;
  last.layers = {model->cfg().n_layers - 1};
  std::vector<graph::ReadId> reads;
  for (const auto& interventions : sets)
    for (const auto& tokens : texts)
      reads.push_back(graph.read(graph.segment(model, tokens, {}, interventions), last));
  graph::RunOptions run;
  run.memory_budget = options.memory_budget;
  const auto captured = graph.run(run);
  std::vector<Tensor> out;
  for (size_t s = 0; s < sets.size(); ++s) {
    std::vector<Tensor> rows;
    for (size_t t = 0; t < texts.size(); ++t)
      rows.push_back(captured[static_cast<size_t>(reads[s * texts.size() + t])].values.flatten());
    const auto resid_TD = at::stack(rows).to(torch::TensorOptions(model->device()).dtype(model->dtype()));
    out.push_back(model->readout(resid_TD).cpu().to(torch::kFloat64).log_softmax(-1));
  }
  return out;
}

/// The mean over texts of log p - log(1 - p), p of some tokens together.
double behaviour(const Tensor& log_p_TV, const std::vector<int64_t>& tokens) {
  const auto p_T = log_p_TV.index_select(1, torch::tensor(tokens, torch::kInt64)).exp().sum(1);
  return ((p_T + kEpsilon).log() - (1 - p_T + kEpsilon).log()).mean().item<double>();
}

double mean_kl(const Tensor& base_TV, const Tensor& changed_TV) {
  return (base_TV.exp() * (base_TV - changed_TV)).sum(1).mean().item<double>();
}

void check_tokens(const std::string& who, const models::Model& model, const DirectionSearchOptions& options) {
  check<std::invalid_argument>(!options.tokens.empty(), who,
                               ": there must be a token of the behaviour, got none");
  for (const int64_t token : options.tokens)
    check<std::out_of_range>(token >= 0 && token < model.cfg().d_vocab, who, ": tokens must be 0 to ",
                             model.cfg().d_vocab - 1, ", got ", token);
}

}  // namespace

Tensor mean_differences(const models::Model& model, const std::vector<std::string>& positives,
                        const std::vector<std::string>& negatives, const std::vector<int64_t>& positions,
                        const std::vector<int64_t>& layers, int64_t memory_budget, const Progress& progress) {
  auto texts = positives;  // one pass: what the two sets begin with is run once
  texts.insert(texts.end(), negatives.begin(), negatives.end());
  check<std::invalid_argument>(!positives.empty() && !negatives.empty(),
                               "mean_differences: both sets must have texts, got ", positives.size(), " and ",
                               negatives.size());
  std::vector<activations::ReadPosition> read;
  for (const int64_t position : positions) read.push_back(activations::ReadPosition::token(position));
  activations::CollectOptions options;
  options.read.layers = layers;
  options.read.point = hooks::Point::kResidPre;
  options.memory_budget = memory_budget;
  options.progress = progress;
  const auto n = static_cast<int64_t>(positives.size());
  std::vector<Tensor> out;
  for (const auto& one : activations::collect_positions(model, texts, read, options)) {
    const auto values = one.values_NLD.to(torch::kFloat64);
    check<std::invalid_argument>(values.isfinite().all().item<bool>(),
                                 "mean_differences: the activations must be finite, and some at position ",
                                 activations::to_string(one.position), " are not");
    out.push_back(values.slice(0, 0, n).mean(0) - values.slice(0, n).mean(0));
  }
  return at::stack(out);
}

std::vector<hooks::Intervention> ablation_everywhere(const models::Model& model, const Tensor& direction_D) {
  const auto unit_D = unit_direction("ablation_everywhere", model, direction_D);
  const auto dtype = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  std::vector<hooks::Intervention> out;
  for (const auto point : {hooks::Point::kResidPre, hooks::Point::kAttnOut, hooks::Point::kMlpOut}) {
    hooks::Intervention ablate;
    ablate.op = "ablate";
    ablate.point = point;
    for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer) ablate.values[layer] = unit_D.to(dtype);
    out.push_back(std::move(ablate));
  }
  return out;
}

std::vector<DirectionScores> score_directions(const ModelPtr& model, const Tensor& candidates_PLD,
                                              const std::vector<int64_t>& positions,
                                              const std::vector<int64_t>& layers,
                                              const std::vector<std::string>& positives,
                                              const std::vector<std::string>& negatives,
                                              const DirectionSearchOptions& options) {
  const std::string who = "score_directions";
  check_tokens(who, *model, options);
  const int64_t D = model->cfg().d_model;
  check<ShapeError>(
      candidates_PLD.dim() == 3 && candidates_PLD.size(0) == static_cast<int64_t>(positions.size()) &&
          candidates_PLD.size(1) == static_cast<int64_t>(layers.size()) && candidates_PLD.size(2) == D,
      who, ": candidates must be [", positions.size(), " positions, ", layers.size(), " layers, ", D,
      "], got ", candidates_PLD.sizes());
  for (const int64_t layer : layers)
    check<std::out_of_range>(layer >= 0 && layer < model->cfg().n_layers, who, ": layers must be 0 to ",
                             model->cfg().n_layers - 1, ", got ", layer);
  const auto harmful = tokenized(who, *model, positives), harmless = tokenized(who, *model, negatives);
  const auto base_TV = next_tokens(model, {{}}, harmless, options).front();
  const auto dtype = model->dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  std::vector<DirectionScores> out;
  for (size_t l = 0; l < layers.size(); ++l) {
    report(options.progress, "directions", static_cast<int64_t>(l), static_cast<int64_t>(layers.size()));
    // All positions of a layer in one graph: additions before one layer share everything below it.
    std::vector<std::vector<hooks::Intervention>> ablations, additions;
    for (size_t p = 0; p < positions.size(); ++p) {
      const auto r_D = candidates_PLD[static_cast<int64_t>(p)][static_cast<int64_t>(l)];
      ablations.push_back(ablation_everywhere(*model, r_D));
      hooks::Intervention add;
      add.point = hooks::Point::kResidPre;
      add.values[layers[l]] = r_D.to(dtype);
      additions.push_back({add});
    }
    const auto bypass = next_tokens(model, ablations, harmful, options);
    const auto induce = next_tokens(model, additions, harmless, options);
    const auto kept = next_tokens(model, ablations, harmless, options);
    for (size_t p = 0; p < positions.size(); ++p)
      out.push_back({layers[l], positions[p], behaviour(bypass[p], options.tokens),
                     behaviour(induce[p], options.tokens), mean_kl(base_TV, kept[p])});
  }
  report(options.progress, "directions", static_cast<int64_t>(layers.size()),
         static_cast<int64_t>(layers.size()));
  return out;
}

std::optional<size_t> select_direction(const std::vector<DirectionScores>& scores, int64_t n_layers,
                                       const DirectionSearchOptions& options) {
  std::optional<size_t> best;
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto& one = scores[i];
    const bool fits = static_cast<double>(one.layer) < options.depth * static_cast<double>(n_layers) &&
                      one.kl <= options.most_kl && one.induce >= options.least_induce;
    if (fits && (!best || one.bypass < scores[*best].bypass)) best = i;
  }
  return best;
}

double behaviour_score(const ModelPtr& model, const std::vector<std::string>& texts,
                       const DirectionSearchOptions& options) {
  check_tokens("behaviour_score", *model, options);
  return behaviour(next_tokens(model, {{}}, tokenized("behaviour_score", *model, texts), options).front(),
                   options.tokens);
}

int64_t n_tokens_after_instruction(const models::Model& model) {
  const auto tokens = tokenized("n_tokens_after_instruction", model, [&] {
    std::vector<std::string> out;
    for (const char* text : {"Hello", "Why is the sky blue?"})
      out.push_back(model.chat_template().render({{"user", text}}, {.add_generation_prompt = true}));
    return out;
  }());
  const auto [a, b] =
      std::mismatch(tokens[0].rbegin(), tokens[0].rend(), tokens[1].rbegin(), tokens[1].rend());
  return a - tokens[0].rbegin();
}

}  // namespace introspect::analysis
