#include "introspect/steering/train.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>
#include <utility>

#include <torch/types.h>

#include "core/parallel.h"
#include "introspect/core/check.h"
#include "introspect/io/share.h"
#include "introspect/steering/diagnostics.h"
#include "io/json_file.h"
#include "steering/pairs.h"

#include "core/excerpt.h"

namespace introspect::steering {
namespace {

constexpr int64_t kLayersPerThread = 2;  // between two calls of progress

/// The activations of one layer's pairs, and what their texts are called in messages.
struct Sides {
  torch::Tensor positive_ND, negative_ND;
};
using SidesOfLayer = std::function<Sides(size_t)>;
using TextName = std::function<std::string(bool positive, int64_t row)>;

/// The first row that is not finite, if there is one.
std::optional<int64_t> broken_row(const torch::Tensor& rows_ND) {
  const auto broken = rows_ND.isfinite().all(1).logical_not().nonzero();
  if (broken.size(0) == 0) return std::nullopt;
  return broken[0].item<int64_t>();
}

/// The same complaint with the text that it is about, where that is known.
std::string named(const std::string& problem, const Sides& sides, const TextName& text_name) {
  for (const bool positive : {true, false})
    if (const auto row = broken_row(positive ? sides.positive_ND : sides.negative_ND))
      return concat(problem, " for ", text_name(positive, *row));
  return problem;
}

/// Directions of all layers, some side by side, and what is known of them, into `origin`.
ControlVector learn(const std::string& who, const std::string& model_type, const std::vector<int64_t>& layers,
                    const SidesOfLayer& sides_of, const TextName& text_name, const DirectionOptions& options,
                    VectorOrigin origin) {
  std::vector<torch::Tensor> directions(layers.size());
  std::vector<std::vector<double>> shares(layers.size());
  std::vector<LayerDiagnostics> diagnostics(layers.size());
  const auto find = [&](int64_t first, int64_t last) {
    for (auto i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i) {
      const auto sides = sides_of(i);
      try {
        const auto pairs = checked_pairs("direction_of_pairs", sides.positive_ND, sides.negative_ND);
        directions[i] = direction_of(pairs, options.method, options.seed, &shares[i]).to(torch::kFloat32);
        diagnostics[i] = diagnose(pairs, directions[i], options.method, options.folds, options.seed);
      } catch (const std::invalid_argument& problem) {
        throw std::invalid_argument(
            concat(who, ": layer ", layers[i], ": ", named(problem.what(), sides, text_name)));
      }
    }
  };
  const auto n_layers = static_cast<int64_t>(layers.size());
  const int64_t side_by_side = kLayersPerThread * at::get_num_threads();
  for (int64_t first = 0; first < n_layers; first += side_by_side) {
    report(options.progress, "directions", first, n_layers);
    parallel_for(first, std::min(first + side_by_side, n_layers), 1, find);
  }
  report(options.progress, "directions", n_layers, n_layers);

  origin.folds = options.folds;
  ControlVector::Directions by_layer;
  for (size_t i = 0; i < layers.size(); ++i) {
    by_layer.emplace(layers[i], directions[i]);
    origin.diagnostics.emplace(layers[i], diagnostics[i]);
    if (!shares[i].empty()) origin.spectrum.emplace(layers[i], shares[i]);
  }
  return ControlVector(model_type, by_layer, std::move(origin));
}

void check_options(const std::string& who, const DirectionOptions& options, size_t n_pairs) {
  const bool centred = options.method == Method::pca_diff || options.method == Method::lat;
  const size_t needed = centred ? 2 : 1;
  check<std::invalid_argument>(n_pairs >= needed, who, ": ", to_string(options.method), " needs at least ",
                               needed, " pairs, got ", n_pairs);
  check<std::invalid_argument>(options.folds == 0 || options.folds >= 2, who,
                               ": folds must be 0 or at least 2, got ", options.folds);
}

std::vector<std::string> texts_of(const std::vector<TextPair>& pairs) {
  std::vector<std::string> texts;
  for (const auto& pair : pairs) texts.insert(texts.end(), {pair.positive, pair.negative});
  return texts;
}

TextName texts_named(const std::vector<TextPair>& pairs) {
  return [&pairs](bool positive, int64_t row) {
    const auto& pair = pairs[static_cast<size_t>(row)];
    return concat("the ", positive ? "positive" : "negative", " text of pair ", row, ", ",
                  excerpt(positive ? pair.positive : pair.negative));
  };
}

/// What a caller's function returned for `who`: one [rows, D] for each layer.
void check_hiddens(const std::string& who, const Hiddens& hiddens, const std::vector<int64_t>& layers,
                   int64_t rows) {
  for (const int64_t layer : layers) {
    const auto found = hiddens.find(layer);
    check<std::invalid_argument>(found != hiddens.end(), who, ": activations of layer ", layer,
                                 " are needed, got ", hiddens.size(), " layers without it");
    const auto& x = found->second;
    check<ShapeError>(x.dim() == 2 && x.size(0) == rows && x.is_floating_point(), who, ": layer ", layer,
                      " must be float [", rows, ", d], got ", x.sizes(), " ", x.dtype());
  }
}

VectorOrigin origin_of(const activations::Activations& activations, std::string method, size_t n_pairs) {
  VectorOrigin origin;
  origin.model_name = activations.model_name;
  origin.model_hash = activations.model_hash;
  origin.method = std::move(method);
  origin.n_pairs = static_cast<int64_t>(n_pairs);
  origin.point = hooks::point_name(activations.point);
  origin.read_position = to_string(activations.position);
  origin.last_layer_after_norm = activations.last_layer_after_norm;
  return origin;
}

/// Where the texts of every set's pairs stand among all texts, each of which is there once.
struct SharedTexts {
  std::vector<std::string> texts;
  std::vector<torch::Tensor> positive_N, negative_N;  // int64, one of each a set
};

SharedTexts shared_texts(const std::vector<NamedPairs>& sets) {
  SharedTexts out;
  std::unordered_map<std::string_view, int64_t> known;
  const auto place = [&](const std::string& text) {
    const auto [found, is_new] = known.emplace(text, static_cast<int64_t>(out.texts.size()));
    if (is_new) out.texts.push_back(text);
    return found->second;
  };
  for (const auto& set : sets) {
    std::vector<int64_t> positive, negative;
    for (const auto& pair : set.pairs) {
      positive.push_back(place(pair.positive));
      negative.push_back(place(pair.negative));
    }
    out.positive_N.push_back(torch::tensor(positive, torch::kInt64));
    out.negative_N.push_back(torch::tensor(negative, torch::kInt64));
  }
  return out;
}

}  // namespace

std::vector<std::string> load_suffixes() {
  return io::read_json(io::share_folder() / "suffixes.json").get<std::vector<std::string>>();
}

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

ControlVector train(const models::Model& model, const std::vector<TextPair>& pairs,
                    const TrainOptions& options) {
  return train_many(model, {{"", pairs}}, options).front();
}

std::vector<ControlVector> train_many(const models::Model& model, const std::vector<NamedPairs>& sets,
                                      const TrainOptions& options) {
  check<std::invalid_argument>(!sets.empty(), "train: at least one set of pairs is needed, got none");
  const auto who = [](const NamedPairs& set) {
    return set.name.empty() ? std::string("train") : concat("train: '", set.name, "'");
  };
  for (const auto& set : sets) check_options(who(set), options.directions, set.pairs.size());

  const auto shared = shared_texts(sets);
  activations::Activations read;
  if (options.compute_hiddens)
    read = activations::without_values(model, options.read);
  else
    read = activations::collect_activations(
        model, shared.texts, {options.read, options.memory_budget, options.directions.progress});

  std::vector<ControlVector> vectors;
  for (size_t s = 0; s < sets.size(); ++s) {
    const auto& set = sets[s];
    const auto rows = 2 * static_cast<int64_t>(set.pairs.size());
    const auto side = [&](size_t layer_at, const torch::Tensor& places_N) {
      return read.values_NLD.select(1, static_cast<int64_t>(layer_at)).index_select(0, places_N);
    };
    Hiddens hiddens;
    if (options.compute_hiddens) {
      hiddens = options.compute_hiddens(texts_of(set.pairs), read.layers);
      check_hiddens("compute_hiddens", hiddens, read.layers, rows);
    } else if (options.transform_hiddens) {
      for (size_t i = 0; i < read.layers.size(); ++i)
        hiddens.emplace(
            read.layers[i],
            torch::stack({side(i, shared.positive_N[s]), side(i, shared.negative_N[s])}, 1).flatten(0, 1));
    }
    if (options.transform_hiddens) {
      hiddens = options.transform_hiddens(std::move(hiddens));
      check_hiddens("transform_hiddens", hiddens, read.layers, rows);
    }
    const SidesOfLayer sides = [&](size_t i) -> Sides {
      if (hiddens.empty()) return {side(i, shared.positive_N[s]), side(i, shared.negative_N[s])};
      const auto& both = hiddens.at(read.layers[i]);
      return {both.slice(0, 0, std::nullopt, 2), both.slice(0, 1, std::nullopt, 2)};
    };
    auto origin = origin_of(read, to_string(options.directions.method), set.pairs.size());
    origin.concept_name = set.name;
    vectors.push_back(learn(who(set), read.model_type, read.layers, sides, texts_named(set.pairs),
                            options.directions, std::move(origin)));
  }
  return vectors;
}

ControlVector contrast(const activations::Activations& positive, const activations::Activations& negative,
                       const DirectionOptions& options) {
  const auto& a = positive.values_NLD;
  const auto& b = negative.values_NLD;
  check<ShapeError>(a.defined() && b.defined() && a.dim() == 3 && b.dim() == 3 && a.size(2) == b.size(2),
                    "contrast: activations must be of one width, got ", a.sizes(), " of ",
                    positive.model_name, " and ", b.sizes(), " of ", negative.model_name);
  check<std::invalid_argument>(positive.layers == negative.layers,
                               "contrast: activations must be of the same layers, got ",
                               positive.layers.size(), " and ", negative.layers.size());
  check<std::invalid_argument>(positive.texts_hash == negative.texts_hash && a.sizes() == b.sizes(),
                               "contrast: activations must be of the same texts in the same order, got ",
                               a.size(0), " and ", b.size(0), " texts");
  check<std::invalid_argument>(positive.position == negative.position && positive.point == negative.point &&
                                   positive.last_layer_after_norm == negative.last_layer_after_norm,
                               "contrast: activations must be read at the same place, got ",
                               hooks::point_name(positive.point), " at ", to_string(positive.position),
                               " and ", hooks::point_name(negative.point), " at ",
                               to_string(negative.position));
  const auto n_texts = static_cast<size_t>(a.size(0));
  check_options("contrast", options, n_texts);
  const SidesOfLayer sides = [&](size_t i) -> Sides {
    return {a.select(1, static_cast<int64_t>(i)), b.select(1, static_cast<int64_t>(i))};
  };
  const TextName text_name = [&](bool of_positive, int64_t row) {
    return concat("text ", row, " in ", (of_positive ? positive : negative).model_name);
  };
  auto origin = origin_of(negative, concat(to_string(options.method), " of two models"), n_texts);
  return learn("contrast", negative.model_type, negative.layers, sides, text_name, options,
               std::move(origin));
}

}  // namespace introspect::steering
