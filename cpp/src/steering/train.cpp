#include "introspect/steering/train.h"

#include <algorithm>
#include <cctype>
#include <stdexcept>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/parallel.h"
#include "introspect/steering/diagnostics.h"

namespace introspect::steering {
namespace {

/// "Qwen2ForCausalLM" -> "qwen2": config.json's model_type, which repeng writes as the file's model hint.
std::string model_type(const models::Config& cfg) {
  auto name = cfg.original_architecture.substr(0, cfg.original_architecture.find("For"));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

}  // namespace

std::vector<TextPair> concept_pairs(const models::Model& model, const std::string& concept_name,
                                    const std::vector<std::string>& suffixes) {
  check<std::invalid_argument>(!concept_name.empty(), "concept_pairs: the concept must not be empty");
  check<std::invalid_argument>(!suffixes.empty(), "concept_pairs: at least one suffix is needed, got none");
  model.tokenizer();
  const auto prompt = [&](const std::string& topic) {
    return model.chat_template().render({{"system", ""}, {"user", "Please talk about " + topic + "."}},
                                        {.add_generation_prompt = true});
  };
  const auto positive = prompt(concept_name), negative = prompt("anything");
  std::vector<TextPair> pairs;
  for (const auto& suffix : suffixes) pairs.push_back({positive + suffix, negative + suffix});
  return pairs;
}

torch::Tensor last_token_activations(const models::Model& model, const std::vector<std::string>& texts,
                                     const std::vector<int64_t>& layers, const engine::TrieOptions& options) {
  check<std::invalid_argument>(!texts.empty(),
                               "last_token_activations: at least one text is needed, got none");
  check<std::invalid_argument>(!layers.empty(),
                               "last_token_activations: at least one layer is needed, got none");
  std::vector<std::vector<int64_t>> sequences;
  for (const auto& text : texts) {
    const auto ids = model.to_tokens(text).flatten();
    check<std::invalid_argument>(ids.numel() > 0,
                                 "last_token_activations: every text must have tokens, got '", text, "'");
    sequences.emplace_back(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel());
  }
  const engine::TokenTrie trie(sequences);
  return engine::run_trie(model, trie, {.nodes = trie.ends(), .layers = layers}, options);
}

ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                    const TrainOptions& options) {
  const bool centred = options.method == Method::pca_diff || options.method == Method::lat;
  const size_t needed = centred ? 2 : 1;
  check<std::invalid_argument>(pairs.size() >= needed, "train: ", to_string(options.method),
                               " needs at least ", needed, " pairs, got ", pairs.size());
  check<std::invalid_argument>(options.folds == 0 || options.folds >= 2,
                               "train: folds must be 0 or at least 2, got ", options.folds);
  auto layers = options.layers.value_or(std::vector<int64_t>());
  if (!options.layers)
    for (int64_t layer = 1; layer < model.cfg().n_layers; ++layer) layers.push_back(layer);
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());

  std::vector<std::string> texts;
  for (const auto& pair : pairs) texts.insert(texts.end(), {pair.positive, pair.negative});
  const auto activations =
      last_token_activations(model, texts, layers, {options.memory_budget, options.progress});

  const auto n_layers = static_cast<int64_t>(layers.size());
  std::vector<torch::Tensor> directions(layers.size());
  std::vector<std::vector<double>> shares(layers.size());
  std::vector<LayerDiagnostics> diagnostics(layers.size());
  const auto find = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto of_layer = activations.select(1, i);
      const auto positive = of_layer.slice(0, 0, std::nullopt, 2);
      const auto negative = of_layer.slice(0, 1, std::nullopt, 2);
      try {
        directions[at] = direction_of_pairs(positive, negative, options.method, &shares[at], options.seed);
        diagnostics[at] =
            diagnose(positive, negative, directions[at], options.method, options.folds, options.seed);
      } catch (const std::invalid_argument& problem) {
        throw std::invalid_argument(concat("train: layer ", layers[at], ": ", problem.what()));
      }
    }
  };
  const int64_t side_by_side = at::get_num_threads();
  for (int64_t first = 0; first < n_layers; first += side_by_side) {
    report(options.progress, "directions", first, n_layers);
    parallel_for(first, std::min(first + side_by_side, n_layers), 1, find);
  }
  report(options.progress, "directions", n_layers, n_layers);

  VectorOrigin origin{model.cfg().model_name,
                      model.hash(),
                      to_string(options.method),
                      static_cast<int64_t>(pairs.size()),
                      {},
                      options.folds,
                      {}};
  ControlVector::Directions by_layer;
  for (size_t i = 0; i < layers.size(); ++i) {
    by_layer.emplace(layers[i], directions[i]);
    origin.diagnostics.emplace(layers[i], diagnostics[i]);
    if (!shares[i].empty()) origin.spectrum.emplace(layers[i], shares[i]);
  }
  return ControlVector(model_type(model.cfg()), by_layer, std::move(origin));
}

}  // namespace introspect::steering
