#include <variant>

#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/steering/train.h"
#include "introspect/steering/words.h"
#include "native_model.h"

namespace introspect::python {
namespace {

using activations::Activations;
using steering::ControlVector;
using Pairs = std::vector<std::pair<std::string, std::string>>;
using Layers = std::optional<std::vector<int64_t>>;
using Position = std::variant<int64_t, std::pair<int64_t, std::optional<int64_t>>>;
using Texts = std::vector<std::string>;
using OneOrMore = std::variant<std::string, Texts>;

/// A Python object that C++ may keep and let go without the GIL.
std::shared_ptr<py::object> held(py::object object) {
  return {new py::object(std::move(object)), [](py::object* last) {
            const py::gil_scoped_acquire acquire;
            delete last;
          }};
}

activations::ReadPosition as_position(const Position& position) {
  if (const auto* index = std::get_if<int64_t>(&position)) return activations::ReadPosition::token(*index);
  const auto& [first, last] = std::get<1>(position);
  return activations::ReadPosition::span(first, last);
}

py::object position_in_python(const activations::ReadPosition& position) {
  if (position.is_span) return py::make_tuple(position.first, position.last);
  return py::int_(position.first);
}

activations::ReadOptions read_options(Layers layers, const Position& position, const std::string& point,
                                      bool last_layer_after_norm) {
  return {std::move(layers), as_position(position), hooks::parse_point(point), last_layer_after_norm};
}

/// What a user's function returned, of tensors or numpy arrays.
steering::Hiddens as_hiddens(const py::object& returned) {
  const auto as_tensor = py::module_::import("torch").attr("as_tensor");
  steering::Hiddens out;
  for (const auto& [layer, values] : returned.cast<py::dict>())
    out.emplace(layer.cast<int64_t>(), as_tensor(values).cast<torch::Tensor>());
  return out;
}

constexpr int kBatchSize = 32;  // repeng's default, for functions that are written to its signature

steering::TrainOptions train_options(const py::object& model, const std::string& method, Layers layers,
                                     const Position& read_position, const std::string& point,
                                     bool last_layer_after_norm, int64_t memory_budget, uint64_t seed,
                                     int64_t folds, const py::object& compute_hiddens,
                                     const py::object& transform_hiddens, py::object progress) {
  steering::TrainOptions out;
  out.directions = {steering::parse_method(method), seed, folds, as_shown_progress(std::move(progress))};
  out.read = read_options(std::move(layers), read_position, point, last_layer_after_norm);
  out.memory_budget = memory_budget;
  if (!compute_hiddens.is_none())
    out.compute_hiddens = [function = held(compute_hiddens), model = held(model)](
                              const Texts& texts, const std::vector<int64_t>& hidden_layers) {
      const py::gil_scoped_acquire acquire;
      return as_hiddens((*function)(py::arg("model") = *model,
                                    py::arg("tokenizer") = model->attr("tokenizer"),
                                    py::arg("train_strs") = texts, py::arg("hidden_layers") = hidden_layers,
                                    py::arg("batch_size") = kBatchSize));
    };
  if (!transform_hiddens.is_none())
    out.transform_hiddens = [function = held(transform_hiddens)](const steering::Hiddens& hiddens) {
      const py::gil_scoped_acquire acquire;
      return as_hiddens((*function)(hiddens));
    };
  return out;
}

std::vector<steering::TextPair> as_pairs(const Pairs& pairs) {
  std::vector<steering::TextPair> out;
  for (const auto& [positive, negative] : pairs) out.push_back({positive, negative});
  return out;
}

ControlVector train(const py::object& model, const Pairs& pairs, const std::string& method, Layers layers,
                    const Position& read_position, const std::string& point, bool last_layer_after_norm,
                    int64_t memory_budget, uint64_t seed, int64_t folds, const py::object& compute_hiddens,
                    const py::object& transform_hiddens, py::object progress) {
  const auto options =
      train_options(model, method, std::move(layers), read_position, point, last_layer_after_norm,
                    memory_budget, seed, folds, compute_hiddens, transform_hiddens, std::move(progress));
  const auto native = native_model(model);
  const auto texts = as_pairs(pairs);
  const py::gil_scoped_release release;
  return steering::train(*native, texts, options);
}

/// {name: vector} in the names' order.
py::dict named(const Texts& names, std::vector<ControlVector> vectors) {
  py::dict out;
  for (size_t i = 0; i < names.size(); ++i) out[py::str(names[i])] = py::cast(std::move(vectors[i]));
  return out;
}

py::dict train_many(const py::object& model, const py::dict& sets, const std::string& method, Layers layers,
                    const Position& read_position, const std::string& point, bool last_layer_after_norm,
                    int64_t memory_budget, uint64_t seed, int64_t folds, const py::object& compute_hiddens,
                    const py::object& transform_hiddens, py::object progress) {
  const auto options =
      train_options(model, method, std::move(layers), read_position, point, last_layer_after_norm,
                    memory_budget, seed, folds, compute_hiddens, transform_hiddens, std::move(progress));
  const auto native = native_model(model);
  std::vector<steering::NamedPairs> pairs;
  Texts names;
  for (const auto& [name, set] : sets) {
    names.push_back(name.cast<std::string>());
    pairs.push_back({names.back(), as_pairs(set.cast<Pairs>())});
  }
  std::vector<ControlVector> vectors;
  {
    const py::gil_scoped_release release;
    vectors = steering::train_many(*native, pairs, options);
  }
  return named(names, std::move(vectors));
}

Activations collect(const py::object& model, const Texts& texts, Layers layers, const Position& read_position,
                    const std::string& point, bool last_layer_after_norm, int64_t memory_budget,
                    py::object progress) {
  const activations::CollectOptions options{
      read_options(std::move(layers), read_position, point, last_layer_after_norm), memory_budget,
      as_shown_progress(std::move(progress))};
  const auto native = native_model(model);
  const py::gil_scoped_release release;
  return activations::collect_activations(*native, texts, options);
}

std::vector<ControlVector> words_of(const py::object& model, const Texts& words, const Texts& baseline_words,
                                    const OneOrMore& templates, bool chat, Layers layers,
                                    const Position& read_position, const std::string& point,
                                    bool last_layer_after_norm, int64_t memory_budget, py::object progress) {
  const auto* one = std::get_if<std::string>(&templates);
  const steering::WordPrompts prompts{one ? Texts{*one} : std::get<Texts>(templates), chat};
  const activations::CollectOptions options{
      read_options(std::move(layers), read_position, point, last_layer_after_norm), memory_budget,
      as_shown_progress(std::move(progress))};
  const auto native = native_model(model);
  const py::gil_scoped_release release;
  return steering::train_words(*native, words, baseline_words, prompts, options);
}

ControlVector train_words(const py::object& model, const std::string& word, const Texts& baseline_words,
                          const OneOrMore& templates, bool chat, Layers layers, const Position& read_position,
                          const std::string& point, bool last_layer_after_norm, int64_t memory_budget,
                          py::object progress) {
  return words_of(model, {word}, baseline_words, templates, chat, std::move(layers), read_position, point,
                  last_layer_after_norm, memory_budget, std::move(progress))
      .front();
}

py::dict train_words_many(const py::object& model, const Texts& words, const Texts& baseline_words,
                          const OneOrMore& templates, bool chat, Layers layers, const Position& read_position,
                          const std::string& point, bool last_layer_after_norm, int64_t memory_budget,
                          py::object progress) {
  return named(
      words, words_of(model, words, baseline_words, templates, chat, std::move(layers), read_position, point,
                      last_layer_after_norm, memory_budget, std::move(progress)));
}

Pairs concept_pairs(const py::object& model, const std::string& concept_name, const Texts& suffixes) {
  Pairs out;
  for (const auto& pair : steering::concept_pairs(*native_model(model), concept_name, suffixes))
    out.emplace_back(pair.positive, pair.negative);
  return out;
}

ControlVector contrast(const Activations& positive, const Activations& negative, const std::string& method,
                       uint64_t seed, int64_t folds, py::object progress) {
  const steering::DirectionOptions options{steering::parse_method(method), seed, folds,
                                           as_shown_progress(std::move(progress))};
  const py::gil_scoped_release release;
  return steering::contrast(positive, negative, options);
}

constexpr auto kTrainDoc = R"doc(
Trains a vector on pairs of texts that differ in what it shall stand for.

Activations are read at ``point`` of the blocks ``layers``, at ``read_position`` of each text; what texts begin with is
run once, and nothing above the highest layer is run. Each direction points from the negative to the positive side of
most pairs. Every option is checked before the first forward pass.

Args:
    model: an introspect.Model with a tokenizer.
    pairs: (positive, negative) texts, as concept_pairs makes them.
    method: see direction_of_pairs.
    layers: block numbers; None is 1 to n_layers - 1.
    read_position: a token's index, negative from the end, or (first, last) for the mean over a span, last excluded and
        None to the end. Tokens are those of ``model.to_tokens``, its BOS included.
    point: a hook point of a block that has one vector a position. At "attn.hook_z" and its like the heads stand one after
        another; norms' scales, patterns and points with d_model for every head are refused.
    last_layer_after_norm: read the last layer after the final norm, as repeng does.
    memory_budget: bytes of activations at a time; more than a pass of 2,048 tokens needs is not used.
    seed: of the random pairing of "lat"; nothing else is random.
    folds: how many parts of the pairs are judged by the direction of the others, for ``diagnostics``; 0: none.
    compute_hiddens: called in place of reading the model, with repeng's keywords model, tokenizer, train_strs (positive,
        negative, positive, ...), hidden_layers and batch_size; returns {layer: [2 * pairs, d]}.
    transform_hiddens: called with {layer: [2 * pairs, d]}, in that order of rows, and returns the same; d may change.
    progress: called with (what, done, total).

Raises:
    ValueError: too few pairs, an empty text or span, an unknown method, a point without a direction, pairs that do not
        differ (naming the layer), activations that are not finite (naming layer and text), hiddens without a layer.
    IndexError: a layer the model does not have, or a position that a text does not have.
    HookError: a point that the model does not have.
    ShapeError: a text longer than n_ctx, or hiddens of another shape.
    ConfigError: a model without tokenizer.
)doc";

constexpr auto kTrainManyDoc = R"doc(
Trains several vectors at once: all texts are one token trie, so that a baseline they share is run once.

Args:
    model: an introspect.Model with a tokenizer.
    pairs: {name: (positive, negative) texts}.

The other arguments are those of ``train``; functions of the caller's are called once for each name.

Returns:
    {name: ControlVector}, each what ``train`` gives up to rounding.

Raises:
    As ``train``, naming the set, and ValueError without any.
)doc";

constexpr auto kWordsDoc = R"doc(
A concept vector from a single word: its mean activation minus the mean over baseline words, at its own length.

Args:
    model: an introspect.Model with a tokenizer.
    word: the concept.
    baseline_words: see introspect.load_words("baseline").
    template: what the words are put into, with "{word}" in it; several are averaged over.
    chat: the template is the user's message, and the head of the answer follows it; False: plain text.
    layers: block numbers; None is 1 to n_layers - 1.
    read_position: see ``train``.
    point: see ``train``.
    last_layer_after_norm: see ``train``.
    memory_budget: see ``train``.
    progress: called with (what, done, total).

Raises:
    ValueError: an empty word, no baseline words, a template without "{word}", a word that does not differ from the
        baseline (naming the layer), activations that are not finite (naming layer and prompt).
    ConfigError: no tokenizer, or no chat template with ``chat``.
    IndexError, HookError, ShapeError: as ``train``.

Source: Lindsey 2025, "Emergent Introspective Awareness in Large Language Models"; Macar et al. 2026.
)doc";

constexpr auto kWordsManyDoc = R"doc(
``train_words`` for several words at once, whose prompts and the baseline's are one token trie.

Args:
    model: an introspect.Model with a tokenizer.
    words: the concepts.

The other arguments are those of ``train_words``.

Returns:
    {word: ControlVector}, in the order of ``words``.
)doc";

/// Arguments that several functions have, with one set of defaults.
auto read_args() {
  return std::make_tuple(py::arg("layers") = py::none(), py::arg("read_position") = -1,
                         py::arg("point") = "hook_resid_post", py::arg("last_layer_after_norm") = false,
                         py::arg("memory_budget") = activations::CollectOptions{}.memory_budget);
}
auto train_args() {
  return std::tuple_cat(
      std::make_tuple(py::kw_only(), py::arg("method") = "pca_center"), read_args(),
      std::make_tuple(py::arg("seed") = 0, py::arg("folds") = 2, py::arg("compute_hiddens") = py::none(),
                      py::arg("transform_hiddens") = py::none(), py::arg("progress") = py::none()));
}
auto word_args() {
  return std::tuple_cat(
      std::make_tuple(py::kw_only(), py::arg("template") = steering::WordPrompts{}.templates.front(),
                      py::arg("chat") = true),
      read_args(), std::make_tuple(py::arg("progress") = py::none()));
}

}  // namespace

void bind_training(py::module_& m) {
  auto vector = py::reinterpret_borrow<py::class_<ControlVector>>(m.attr("ControlVector"));
  std::apply(
      [&](const auto&... args) {
        vector.def_static("train", &train, py::arg("model"), py::arg("pairs"), args..., kTrainDoc);
        vector.def_static("train_many", &train_many, py::arg("model"), py::arg("pairs"), args...,
                          kTrainManyDoc);
      },
      train_args());
  std::apply(
      [&](const auto&... args) {
        vector.def_static("train_words", &train_words, py::arg("model"), py::arg("word"),
                          py::arg("baseline_words"), args..., kWordsDoc);
        vector.def_static("train_words_many", &train_words_many, py::arg("model"), py::arg("words"),
                          py::arg("baseline_words"), args..., kWordsManyDoc);
      },
      word_args());

  py::class_<Activations>(m, "Activations", R"doc(
Activations of texts in one model: what directions are made from, and all that ``contrast`` needs of the model.
)doc")
      .def_property_readonly(
          "values", [](const Activations& a) { return a.values_NLD; },
          "[texts, layers, d], float32 (float64 of a float64 model), on the CPU; not to be written to.")
      .def_readonly("layers", &Activations::layers)
      .def_property_readonly(
          "read_position", [](const Activations& a) { return position_in_python(a.position); },
          "A token's index, or (first, last) of a span.")
      .def_property_readonly("point",
                             [](const Activations& a) { return std::string(hooks::point_name(a.point)); })
      .def_readonly("last_layer_after_norm", &Activations::last_layer_after_norm)
      .def_readonly("texts_hash", &Activations::texts_hash, "Hex SHA-256 of the texts in their order.")
      .def_readonly("model_name", &Activations::model_name)
      .def_readonly("model_hash", &Activations::model_hash)
      .def_readonly("model_type", &Activations::model_type)
      .def("__repr__",
           [](const Activations& a) {
             return concat("Activations(", a.model_name, ", ", a.values_NLD.size(0), " texts, ",
                           a.layers.size(), " layers, d=", a.values_NLD.size(2), ", ",
                           hooks::point_name(a.point), " at ", activations::to_string(a.position), ")");
           })
      .def("save", &Activations::save, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
           "Writes a safetensors file with all of it. Raises IoError.")
      .def_static("load", &Activations::load, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
                  "Reads what save wrote. Raises IoError.");

  std::apply(
      [&](const auto&... args) {
        m.def("collect_activations", &collect, py::arg("model"), py::arg("texts"), py::kw_only(), args...,
              py::arg("progress") = py::none(), R"doc(
Reads a model at chosen tokens of texts; what texts begin with is run once, and equal texts are read once.

Args:
    model: an introspect.Model with a tokenizer.
    texts: in the order of the result's rows.
    layers: block numbers; None is 1 to n_layers - 1.
    read_position: see ControlVector.train, and so for ``point``, ``last_layer_after_norm`` and ``memory_budget``.
    progress: called with (what, done, total).

Returns:
    Activations.

Raises:
    As ControlVector.train does before its first forward pass.
)doc");
      },
      read_args());

  m.def("contrast", &contrast, py::arg("positive"), py::arg("negative"), py::kw_only(),
        py::arg("method") = "pca_center", py::arg("seed") = 0, py::arg("folds") = 2,
        py::arg("progress") = py::none(), R"doc(
The vector from one model to another: directions of the pairs that a text's activations in two models are.

Args:
    positive: Activations of the model that the vector leads to.
    negative: of the model that it is for, from the same texts, layers, position and point.
    method: see direction_of_pairs.
    seed: of the random pairing of "lat".
    folds: see ControlVector.train.
    progress: called with (what, done, total).

Raises:
    ShapeError: activations of different widths.
    ValueError: activations of other layers, texts, positions or points, or that are not finite or equal in both models,
        naming the layer.

Source: the model-contrastive vectors of vgel.me, "Small Models Can Introspect, Too".
)doc");

  m.def("concept_pairs", &concept_pairs, py::arg("model"), py::arg("concept"), py::arg("suffixes"), R"doc(
The text pairs of the introspection experiments: "Please talk about {concept}." against "Please talk about anything.",
with an empty system message, each suffix being the start of the assistant's answer.

Args:
    model: an introspect.Model with a tokenizer and a chat template.
    concept: a word.
    suffixes: see introspect.load_suffixes.

Returns:
    (positive, negative) texts, one pair a suffix.

Raises:
    ValueError: an empty concept or no suffixes.
    ConfigError: the model has no tokenizer or chat template.
)doc");
}

}  // namespace introspect::python
