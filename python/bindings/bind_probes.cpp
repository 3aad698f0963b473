#include <variant>

#include "bindings.h"

#include "introspect/activations/collect_positions.h"
#include "introspect/analysis/cross_validation.h"
#include "introspect/analysis/monitor.h"
#include "introspect/analysis/probe_study.h"
#include "introspect/core/check.h"
#include "introspect/ops/logistic_regression.h"
#include "native_model.h"
#include "value_type.h"

namespace introspect::python {
namespace {

using namespace analysis;
using activations::Activations;
using activations::ReadPosition;
using Texts = std::vector<std::string>;
using Position = std::variant<int64_t, std::pair<int64_t, std::optional<int64_t>>>;

ReadPosition as_position(const Position& position) {
  if (const auto* index = std::get_if<int64_t>(&position)) return ReadPosition::token(*index);
  const auto& [first, last] = std::get<1>(position);
  return ReadPosition::span(first, last);
}

py::object position_in_python(const ReadPosition& position) {
  if (position.is_span) return py::make_tuple(position.first, position.last);
  return py::int_(position.first);
}

std::vector<Activations> collect(const py::object& model, const Texts& texts,
                                 const std::vector<Position>& positions,
                                 std::optional<std::vector<int64_t>> layers, const std::string& point,
                                 bool last_layer_after_norm, int64_t memory_budget, py::object progress) {
  std::vector<ReadPosition> read;
  for (const auto& position : positions) read.push_back(as_position(position));
  activations::CollectOptions options;
  options.read.layers = std::move(layers);
  options.read.point = hooks::parse_point(point);
  options.read.last_layer_after_norm = last_layer_after_norm;
  options.memory_budget = memory_budget;
  options.progress = as_shown_progress(std::move(progress));
  const auto native = native_model(model);
  const py::gil_scoped_release release;
  return activations::collect_positions(*native, texts, read, options);
}

/// A probe's fields in a dictionary, for pickles and for copies with some of them changed.
py::dict fields_of(const Probe& p) {
  py::dict out;
  out["kind"] = to_string(p.kind);
  out["weights"] = p.weights_KD;
  out["bias"] = p.bias_K;
  out["mean"] = p.mean_D;
  out["scale"] = p.scale_D;
  out["classes"] = p.classes;
  out["name"] = p.name;
  out["threshold"] = p.threshold;
  out["point"] = std::string(hooks::point_name(p.point));
  out["layer"] = p.layer;
  out["position"] = position_in_python(p.position);
  out["last_layer_after_norm"] = p.last_layer_after_norm;
  out["model_name"] = p.model_name;
  out["model_hash"] = p.model_hash;
  out["model_type"] = p.model_type;
  out["data_hash"] = p.data_hash;
  out["n_texts"] = p.n_texts;
  out["C"] = p.C;
  return out;
}

Probe with_fields(Probe p, const py::dict& changes) {
  const auto take = [&](const char* name, auto& field) {
    if (changes.contains(name)) field = changes[name].cast<std::remove_reference_t<decltype(field)>>();
  };
  const auto known = fields_of(p);
  for (const auto& [name, value] : changes)
    if (!known.contains(name))
      throw py::type_error("Probe: there is no field " + py::str(name).cast<std::string>());
  if (changes.contains("kind")) p.kind = parse_probe_kind(changes["kind"].cast<std::string>());
  take("weights", p.weights_KD);
  take("bias", p.bias_K);
  take("mean", p.mean_D);
  take("scale", p.scale_D);
  take("classes", p.classes);
  take("name", p.name);
  take("threshold", p.threshold);
  if (changes.contains("point")) p.point = hooks::parse_point(changes["point"].cast<std::string>());
  take("layer", p.layer);
  if (changes.contains("position")) p.position = as_position(changes["position"].cast<Position>());
  take("last_layer_after_norm", p.last_layer_after_norm);
  take("model_name", p.model_name);
  take("model_hash", p.model_hash);
  take("model_type", p.model_type);
  take("data_hash", p.data_hash);
  take("n_texts", p.n_texts);
  take("C", p.C);
  for (auto* tensor : {&p.weights_KD, &p.bias_K, &p.mean_D, &p.scale_D})
    if (tensor->defined())
      *tensor = tensor->detach().to(torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64));
  p.validate();
  return p;
}

std::string repr(const Probe& p) {
  return concat("Probe(", p.name.empty() ? "" : concat("'", p.name, "', "), "kind='", to_string(p.kind),
                "', ", p.classes.size(), " classes, layer ", p.layer, " ", hooks::point_name(p.point), " at ",
                activations::to_string(p.position), ", d=", p.width(), ")");
}

void bind_probe(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<Probe> type(m, "Probe", R"doc(
A linear readout of activations at one place of one model: scores are w.(x - mean) / scale + b.

Two classes have one row of weights, whose score is of the second class: above 0 it is predicted. More classes have one
row each, and the highest is predicted. ``fit_probe`` and ``probe_layers`` make them, and ``probe_of_direction``.

Attributes:
    kind: "logistic", "mass_mean", "mass_mean_covariance", "ridge" or "direction".
    classes: names of the classes.
    name: what it reads.
    threshold: of the score, of a monitor; None: not set.
    layer, point, position: where it reads; a position is a token's index or (first, last) of a span.
    model_name, model_hash, model_type, data_hash, n_texts, C: what it was made of.
)doc");
  copy_as_value(type);
  type.def(py::init([](const py::kwargs& fields) { return with_fields({}, fields); }),
           "From its fields by name. Raises ShapeError, ConfigError or ValueError for fields that do not go "
           "together.")
      .def_property_readonly("kind", [](const Probe& p) { return to_string(p.kind); })
      .def_property_readonly(
          "weights", [](const Probe& p) { return p.weights_KD; }, "float64 [K, d]; not to be written to.")
      .def_property_readonly(
          "bias", [](const Probe& p) { return p.bias_K; }, "float64 [K].")
      .def_property_readonly(
          "mean", [](const Probe& p) { return p.mean_D; }, "float64 [d], of the scaler.")
      .def_property_readonly(
          "scale", [](const Probe& p) { return p.scale_D; }, "float64 [d], of the scaler.")
      .def_readonly("classes", &Probe::classes)
      .def_readonly("name", &Probe::name)
      .def_readonly("threshold", &Probe::threshold)
      .def_property_readonly("point", [](const Probe& p) { return std::string(hooks::point_name(p.point)); })
      .def_readonly("layer", &Probe::layer)
      .def_property_readonly("position", [](const Probe& p) { return position_in_python(p.position); })
      .def_readonly("last_layer_after_norm", &Probe::last_layer_after_norm)
      .def_readonly("model_name", &Probe::model_name)
      .def_readonly("model_hash", &Probe::model_hash)
      .def_readonly("model_type", &Probe::model_type)
      .def_readonly("data_hash", &Probe::data_hash)
      .def_readonly("n_texts", &Probe::n_texts)
      .def_readonly("C", &Probe::C)
      .def("scores", &Probe::scores, py::arg("x"), release, R"doc(
Scores [...] of activations [..., d], or [..., K] for more than two classes, in float64.

Raises:
    ShapeError: activations of another width.
    ValueError: activations that are not finite.
)doc")
      .def("probabilities", &Probe::probabilities, py::arg("x"), release,
           "The classes' probabilities [..., classes]. Raises ConfigError for kinds whose score is no "
           "log-odds.")
      .def("direction", &Probe::direction, R"doc(
The ControlVector of its layer: the weights in the units of the activations, of length 1.

Raises:
    ConfigError: more than two classes, or another point than hook_resid_post.
)doc")
      .def(
          "with_", [](const Probe& p, const py::kwargs& changes) { return with_fields(p, changes); },
          "The same probe with some fields changed: ``probe.with_(name='truth', threshold=2.0)``.")
      .def("save", &Probe::save, py::arg("path"), release, "One .safetensors file. Raises IoError.")
      .def_static("load", &Probe::load, py::arg("path"), release, "Raises IoError.")
      .def(py::pickle([](const Probe& p) { return fields_of(p); },
                      [](const py::dict& fields) { return with_fields({}, fields); }))
      .def("__repr__", &repr);

  m.def(
      "probe_of_direction",
      [](const torch::Tensor& direction, int64_t layer, const std::string& name, const std::string& point) {
        return probe_of_direction(direction, layer, name, hooks::parse_point(point));
      },
      py::arg("direction"), py::kw_only(), py::arg("layer"), py::arg("name") = "",
      py::arg("point") = "hook_resid_post", R"doc(
A probe whose score is the projection on a direction, x.v / |v|.

Args:
    direction: [d], any float dtype.
    layer: where it is read.
    name: what it reads.
    point: a hook point of a block.

Raises:
    ShapeError, ValueError: a direction that is none.
)doc");
  m.def(
      "check_probe",
      [](const std::string& who, const Probe& probe, const py::object& model) {
        check_model(who, probe, *native_model(model));
      },
      py::arg("who"), py::arg("probe"), py::arg("model"), "Raises ConfigError for a probe of another model.");
  m.def(
      "fit_probe",
      [](const torch::Tensor& x, const std::vector<int64_t>& labels, const Texts& classes,
         const std::string& kind, double C, std::optional<bool> standardise) {
        return fit_probe(x, labels, classes, {parse_probe_kind(kind), C, standardise});
      },
      py::arg("x"), py::arg("labels"), py::arg("classes"), py::kw_only(), py::arg("kind") = "logistic",
      py::arg("C") = 1.0, py::arg("standardise") = py::none(), release,
      "A probe of activations [n, d]: see introspect.analysis.fit_probe.");
}

void bind_study(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("stratified_folds", &stratified_folds, py::arg("labels"), py::arg("n_folds"), R"doc(
The fold of each text, 0 to n_folds - 1, with every class spread evenly: scikit-learn's StratifiedKFold(n_folds).

Raises:
    ValueError: labels of one class, a class with fewer texts than folds, or fewer than two folds.
)doc");
  m.def("stratified_group_folds", &stratified_group_folds, py::arg("labels"), py::arg("groups"),
        py::arg("n_folds"),
        R"doc(
The same with each group whole in one fold: scikit-learn's StratifiedGroupKFold(n_folds).

Raises:
    ValueError: labels of one class, fewer groups than folds, or fewer than two folds.
)doc");
  m.def("check_folds", &check_folds, py::arg("folds"), py::arg("labels"),
        "Raises ValueError unless every class has texts outside of each fold.");
  m.def("collect_positions", &collect, py::arg("model"), py::arg("texts"), py::arg("positions"),
        py::kw_only(), py::arg("layers") = py::none(), py::arg("point") = "hook_resid_post",
        py::arg("last_layer_after_norm") = false,
        py::arg("memory_budget") = activations::CollectOptions{}.memory_budget,
        py::arg("progress") = py::none(),
        "collect_activations at several positions of each text in one pass: a list of Activations.");

  py::class_<ProbeScores>(m, "ProbeScores", "What held-out texts say of a probe.")
      .def_readonly("accuracy", &ProbeScores::accuracy, "Share of the texts whose class is predicted.")
      .def_readonly("auc", &ProbeScores::auc,
                    "Mean over folds; of more classes the mean of one against the rest.")
      .def_readonly("log_loss", &ProbeScores::log_loss, "Nats a text; NaN for kinds without probabilities.")
      .def("__repr__", [](const ProbeScores& s) {
        return concat("ProbeScores(accuracy=", s.accuracy.value, ", auc=", s.auc.value,
                      ", log_loss=", s.log_loss, ")");
      });
  py::class_<ProbeStudy>(m, "ProbeStudy", "One layer's probe and how well it does: see study_probes.")
      .def_readonly("probe", &ProbeStudy::probe, "Fitted on all texts.")
      .def_property_readonly(
          "held_out", [](const ProbeStudy& s) { return s.held_out; },
          "float64 [n], or [n, K]: scores by the probe that has not seen the text's fold.")
      .def_readonly("scores", &ProbeStudy::scores)
      .def_readonly("null_accuracy", &ProbeStudy::null_accuracy)
      .def_readonly("null_auc", &ProbeStudy::null_auc)
      .def_readonly("control_accuracy", &ProbeStudy::control_accuracy)
      .def_readonly("description_bits", &ProbeStudy::description_bits)
      .def_readonly("compression", &ProbeStudy::compression);
  m.def(
      "study_probes",
      [](const torch::Tensor& values, const Texts& classes, const std::vector<int64_t>& labels,
         const std::vector<int64_t>& folds, const std::vector<int64_t>& groups,
         const std::vector<int64_t>& types, const std::string& kind, std::optional<bool> standardise,
         const std::vector<double>& C, int64_t nulls, bool description, double confidence, int64_t resamples,
         uint64_t seed, py::object progress) {
        const ProbeLabels of{labels, static_cast<int64_t>(classes.size()), folds, groups, types};
        const ProbeStudyOptions options{parse_probe_kind(kind),
                                        standardise,
                                        C,
                                        nulls,
                                        description,
                                        confidence,
                                        resamples,
                                        seed,
                                        as_shown_progress(std::move(progress))};
        const py::gil_scoped_release unlocked;
        return study_probes(values, classes, of, options);
      },
      py::arg("values"), py::arg("classes"), py::arg("labels"), py::kw_only(), py::arg("folds"),
      py::arg("groups") = std::vector<int64_t>{}, py::arg("types") = std::vector<int64_t>{},
      py::arg("kind") = "logistic", py::arg("standardise") = py::none(),
      py::arg("C") = std::vector<double>{1.0}, py::arg("nulls") = 20, py::arg("description") = true,
      py::arg("confidence") = 0.95, py::arg("resamples") = 1000, py::arg("seed") = 0,
      py::arg("progress") = py::none(), R"doc(
Probes of activations [texts, layers, d], cross-validated, with what chance gives in the same place.

``introspect.analysis.probe_layers`` reads a model and makes a table of it; this takes activations that are there.

Returns:
    One ProbeStudy a layer.

Raises:
    ShapeError, ValueError: inputs that do not go together, activations that are not finite (naming text and layer).
)doc");
  m.def("evaluate_probe", &evaluate_probe, py::arg("probe"), py::arg("activations"), py::arg("labels"),
        py::arg("groups") = std::vector<int64_t>{}, py::arg("confidence") = 0.95, py::arg("resamples") = 1000,
        py::arg("seed") = 0, release, R"doc(
A probe on other activations [n, d]: ProbeScores with intervals.

Raises:
    ShapeError, ValueError: inputs that do not go together, or labels of one class.
)doc");
  m.def(
      "logistic_regressions",
      [](const torch::Tensor& rows, const torch::Tensor& labels, const torch::Tensor& C,
         const std::optional<torch::Tensor>& scale, int64_t n_classes, double tolerance) {
        const auto fits = ops::logistic_regressions(rows, labels, C, scale.value_or(torch::Tensor{}),
                                                    {n_classes, tolerance});
        return std::pair{fits.weights_PKD, fits.bias_PK};
      },
      py::arg("rows"), py::arg("labels"), py::arg("C"), py::kw_only(), py::arg("scale") = py::none(),
      py::arg("n_classes") = 2, py::arg("tolerance") = 1e-9, release, R"doc(
L2-regularised logistic regressions of several sets of labels on the same rows, all at once.

Args:
    rows: float32 or float64 [n, d].
    labels: int64 [p, n], classes from 0; -1 leaves the row out.
    C: float64 [p], as in scikit-learn.
    scale: float64 [p, d], the scaler of each; None: ones.
    n_classes: two have one row of weights, more one each (softmax).
    tolerance: of the gradient, as a share of that at zero.

Returns:
    weights [p, K, d] and biases [p, K], float64: logits of rows x are x w + b.

Raises:
    ShapeError, ValueError: other shapes, numbers out of range, or no convergence.
)doc");
}

void bind_monitor(py::module_& m) {
  m.def(
      "threshold_at",
      [](const std::vector<double>& harmless, double rate) { return threshold_at(harmless, rate); },
      py::arg("harmless"), py::arg("false_positive_rate") = 0.01, R"doc(
The lowest threshold that at most this share of harmless texts reaches, from their scores.

They must be other texts than those that the monitor is judged on; 1 % wants a thousand to be known well.

Raises:
    ValueError: no scores, scores that are not finite, or a rate out of range.
)doc");
  py::class_<MonitorReport>(m, "MonitorReport",
                            "How well scores with a threshold find what they are to find.")
      .def_readonly("threshold", &MonitorReport::threshold)
      .def_readonly("recall", &MonitorReport::recall,
                    "Share of positives at or above the threshold, exact interval.")
      .def_readonly("false_alarms", &MonitorReport::false_alarms, "The same of negatives.")
      .def_readonly("auc", &MonitorReport::auc, "Whatever the threshold, with its interval.")
      .def("__repr__", [](const MonitorReport& r) {
        return concat("MonitorReport(threshold=", r.threshold, ", recall=", r.recall.value,
                      ", false_alarms=", r.false_alarms.value, ", auc=", r.auc.value, ")");
      });
  m.def(
      "monitor_report",
      [](const std::vector<double>& positives, const std::vector<double>& negatives, double threshold,
         double confidence) { return monitor_report(positives, negatives, threshold, confidence); },
      py::arg("positives"), py::arg("negatives"), py::kw_only(), py::arg("threshold"),
      py::arg("confidence") = 0.95,
      "Recall, false alarms and AUC of scores, with intervals. Raises ValueError for fewer than two of "
      "either.");
  m.def(
      "calibration_error",
      [](const std::vector<double>& probabilities, const std::vector<int64_t>& labels, int64_t bins) {
        return calibration_error(probabilities, labels, bins);
      },
      py::arg("probabilities"), py::arg("labels"), py::arg("bins") = 10, R"doc(
Expected calibration error: the mean distance of stated probability and observed share over bins of equal width.

Raises:
    ValueError: lists of other lengths, or numbers out of range.

Source: Naeini et al. 2015; Guo et al. 2017.
)doc");
}

}  // namespace

void bind_probes(py::module_& m) {
  bind_probe(m);
  bind_study(m);
  bind_monitor(m);
}

}  // namespace introspect::python
