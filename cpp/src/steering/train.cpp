#include "introspect/steering/train.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <torch/torch.h>

#include "introspect/core/check.h"
#include "introspect/core/parallel.h"
#include "introspect/steering/diagnostics.h"

namespace introspect::steering {
namespace {

using Ids = std::vector<int64_t>;

/// "Qwen2ForCausalLM" -> "qwen2": config.json's model_type, which repeng writes as the file's model hint.
std::string model_type(const models::Config& cfg) {
  auto name = cfg.original_architecture.substr(0, cfg.original_architecture.find("For"));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

size_t common_prefix(const Ids& a, const Ids& b) {
  const auto n = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + static_cast<int64_t>(n), b.begin()).first -
                             a.begin());
}

torch::Tensor as_row(const Ids& ids, size_t first, size_t last) {
  const Ids part(ids.begin() + static_cast<int64_t>(first), ids.begin() + static_cast<int64_t>(last));
  return torch::tensor(part, torch::kInt64).unsqueeze(0);
}

/// Runs one batch of token sequences and gives the chosen layers' activations at each one's last token, [B, L, D].
/// `alive` is called after each of these layers.
torch::Tensor run_batch(const models::Model& model, const std::vector<const Ids*>& batch,
                        const std::vector<int64_t>& layers, const std::function<void()>& alive) {
  const auto n_rows = static_cast<int64_t>(batch.size());
  models::ForwardOptions pass;
  pass.logits_at = models::LogitsAt::kNone;
  const auto end_layer = *std::max_element(layers.begin(), layers.end()) + 1;
  const bool whole = end_layer == model.cfg().n_layers;
  if (!whole) pass.stop_at_layer = end_layer;

  // What all rows begin with runs once; a pass that stops early fills no cache and so runs it in every row.
  auto shared = whole ? batch[0]->size() - 1 : 0;
  auto longest = batch[0]->size();
  for (const auto* ids : batch) {
    shared = std::min({shared, common_prefix(*batch[0], *ids), ids->size() - 1});
    longest = std::max(longest, ids->size());
  }
  auto cache = model.make_cache(1);
  if (shared > 0) {
    pass.cache = &cache;
    model.forward(as_row(*batch[0], 0, shared), pass);
    cache = cache.select_rows(std::vector<int64_t>(batch.size(), 0));
  }

  auto tokens_BT = torch::zeros({n_rows, static_cast<int64_t>(longest - shared)}, torch::kInt64);
  auto mask_BT = torch::zeros_like(tokens_BT, torch::kBool);
  auto last_B = torch::empty({n_rows}, torch::kInt64);
  for (int64_t row = 0; row < n_rows; ++row) {
    const auto& ids = *batch[static_cast<size_t>(row)];
    const auto length = static_cast<int64_t>(ids.size() - shared);
    tokens_BT[row].narrow(0, 0, length).copy_(as_row(ids, shared, ids.size())[0]);
    mask_BT[row].narrow(0, 0, length).fill_(true);
    last_B[row] = length - 1;
  }
  if (!mask_BT.all().item<bool>()) pass.attention_mask = mask_BT;

  const auto out_BLD = torch::empty({n_rows, static_cast<int64_t>(layers.size()), model.cfg().d_model});
  const auto rows_B = torch::arange(n_rows, model.device());
  const auto last_on_device = last_B.to(model.device());
  auto registry = model.make_hooks();
  for (size_t i = 0; i < layers.size(); ++i)
    registry.observe(
        hooks::hook_name({hooks::Point::kResidPost, layers[i]}),
        [&, i](const torch::Tensor& x_BTD, hooks::Site) {
          out_BLD.select(1, static_cast<int64_t>(i)).copy_(x_BTD.index({rows_B, last_on_device}));
          alive();
        });
  pass.hooks = &registry;
  model.forward(tokens_BT, pass);
  return out_BLD;
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
                                     const std::vector<int64_t>& layers, int64_t batch_size,
                                     const Progress& progress) {
  check<std::invalid_argument>(!texts.empty(),
                               "last_token_activations: at least one text is needed, got none");
  check<std::invalid_argument>(batch_size >= 1, "last_token_activations: batch_size must be at least 1, got ",
                               batch_size);
  check<std::invalid_argument>(!layers.empty(),
                               "last_token_activations: at least one layer is needed, got none");
  for (const auto layer : layers)
    check<std::out_of_range>(layer >= 0 && layer < model.cfg().n_layers,
                             "last_token_activations: layers must be 0 to ", model.cfg().n_layers - 1,
                             ", got ", layer);
  std::vector<Ids> sequences;
  for (const auto& text : texts) {
    const auto ids = model.to_tokens(text).flatten();
    check<std::invalid_argument>(ids.numel() > 0,
                                 "last_token_activations: every text must have tokens, got '", text, "'");
    check<ShapeError>(ids.numel() <= model.cfg().n_ctx,
                      "last_token_activations: texts must fit into the model's ", model.cfg().n_ctx,
                      " positions, got ", ids.numel(), " tokens");
    sequences.emplace_back(ids.data_ptr<int64_t>(), ids.data_ptr<int64_t>() + ids.numel());
  }
  // Neighbours in this order share the longest prefixes.
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return std::tie(sequences[a], a) < std::tie(sequences[b], b); });

  const torch::NoGradGuard no_grad;
  const auto total = static_cast<int64_t>(texts.size());
  auto out_NLD = torch::empty({total, static_cast<int64_t>(layers.size()), model.cfg().d_model});
  for (int64_t first = 0; first < total; first += batch_size) {
    const auto alive = [&] { report(progress, "activations", first, total); };
    alive();
    std::vector<const Ids*> batch;
    std::vector<int64_t> places;
    for (int64_t i = first; i < std::min(first + batch_size, total); ++i) {
      const auto text = order[static_cast<size_t>(i)];
      batch.push_back(&sequences[text]);
      places.push_back(static_cast<int64_t>(text));
    }
    out_NLD.index_copy_(0, torch::tensor(places, torch::kInt64), run_batch(model, batch, layers, alive));
  }
  report(progress, "activations", total, total);
  return out_NLD;
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
  const auto activations = last_token_activations(model, texts, layers, options.batch_size, options.progress);

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
