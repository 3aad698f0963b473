#include "introspect/steering/train.h"

#include <algorithm>
#include <cctype>
#include <functional>
#include <map>
#include <numeric>
#include <stdexcept>
#include <tuple>
#include <utility>

#include <torch/torch.h>

#include "introspect/core/check.h"
#include "introspect/core/parallel.h"
#include "introspect/ops/pca.h"

namespace introspect::steering {
namespace {

using Ids = std::vector<int64_t>;

const std::map<std::string, Method> kMethods{
    {"pca_center", Method::pca_center}, {"pca_diff", Method::pca_diff}, {"mean_diff", Method::mean_diff}};

constexpr size_t kSharesKept = 8;  // of each layer's spectrum

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
    registry.observe(hooks::hook_name({hooks::Point::kResidPost, layers[i]}),
                     [&, i](const torch::Tensor& x_BTD, hooks::Site) {
                       out_BLD.select(1, static_cast<int64_t>(i))
                           .copy_(x_BTD.index({rows_B, last_on_device}));
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

Method parse_method(const std::string& name) {
  const auto found = kMethods.find(name);
  check<std::invalid_argument>(found != kMethods.end(),
                               "train: method must be pca_center, pca_diff or mean_diff, got '", name, "'");
  return found->second;
}

std::string to_string(Method method) {
  for (const auto& [name, value] : kMethods)
    if (value == method) return name;
  throw std::invalid_argument("to_string: not a Method");
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

torch::Tensor direction_of_pairs(const torch::Tensor& positive_ND, const torch::Tensor& negative_ND,
                                 Method method, std::vector<double>* shares) {
  check<ShapeError>(
      positive_ND.dim() == 2 && positive_ND.sizes() == negative_ND.sizes() && positive_ND.size(0) > 0,
      "direction_of_pairs: both sides must be [pairs, d_model] of one shape, got ", positive_ND.sizes(),
      " and ", negative_ND.sizes());
  const auto difference_ND = positive_ND.to(torch::kFloat64) - negative_ND.to(torch::kFloat64);
  if (method == Method::mean_diff) {
    const auto mean_D = difference_ND.mean(0);
    check<std::invalid_argument>(mean_D.isfinite().all().item<bool>() && mean_D.norm().item<double>() > 0,
                                 "direction_of_pairs: the mean difference must be finite and not zero");
    return mean_D.to(torch::kFloat32);
  }
  // Each pair less its midpoint is +-half its difference: PCA of all of them is that of the halves about zero.
  const auto pca = ops::principal_components(difference_ND / 2, 1, /*center=*/method == Method::pca_diff);
  auto direction_D = pca.components_KD[0];
  const auto projections_N = difference_ND.mv(direction_D);
  const auto vote = projections_N.sign().sum().item<double>();
  if (vote < 0 || (vote == 0 && projections_N.sum().item<double>() < 0)) direction_D = -direction_D;
  if (shares) {
    const auto kept =
        pca.variance_share.narrow(0, 0, std::min<int64_t>(kSharesKept, pca.variance_share.numel()));
    shares->assign(kept.data_ptr<double>(), kept.data_ptr<double>() + kept.numel());
  }
  return direction_D.to(torch::kFloat32);
}

ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                    const TrainOptions& options) {
  const size_t needed = options.method == Method::pca_diff ? 2 : 1;
  check<std::invalid_argument>(pairs.size() >= needed, "train: ", to_string(options.method),
                               " needs at least ", needed, " pairs, got ", pairs.size());
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
  const auto find = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto of_layer = activations.select(1, i);
      try {
        directions[at] =
            direction_of_pairs(of_layer.slice(0, 0, std::nullopt, 2), of_layer.slice(0, 1, std::nullopt, 2),
                               options.method, &shares[at]);
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
                      {}};
  ControlVector::Directions by_layer;
  for (size_t i = 0; i < layers.size(); ++i) {
    by_layer.emplace(layers[i], directions[i]);
    if (!shares[i].empty()) origin.spectrum.emplace(layers[i], shares[i]);
  }
  return ControlVector(model_type(model.cfg()), by_layer, std::move(origin));
}

}  // namespace introspect::steering
