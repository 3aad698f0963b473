#include "bindings.h"

#include "introspect/experiments/coherence.h"
#include "introspect/experiments/dose.h"
#include "introspect/experiments/dose_search.h"

namespace introspect::python {
namespace {

using namespace experiments;

using Range = std::tuple<double, double, bool>;
using Context = std::variant<Protocol, std::vector<std::vector<int64_t>>>;
using Model = std::shared_ptr<models::Model>;

DoseContext as_context(const Context& given) {
  return std::visit([](const auto& one) { return DoseContext(one); }, given);
}

/// Options by name; those that are not given keep their defaults.
CoherenceOptions as_options(const py::kwargs& given) {
  CoherenceOptions out;
  const std::map<std::string, std::function<void(const py::handle&)>> fields{
      {"strengths", [&](const py::handle& value) { out.strengths = value.cast<std::vector<double>>(); }},
      {"strength_unit",
       [&](const py::handle& value) { out.strength_unit = parse_strength_unit(value.cast<std::string>()); }},
      {"own_strengths",
       [&](const py::handle& value) {
         using Own = std::vector<std::tuple<std::string, int64_t, int64_t, std::vector<double>>>;
         for (const auto& [name, first, last, strengths] : value.cast<Own>())
           out.own_strengths.push_back({name, first, last, strengths});
       }},
      {"layers",
       [&](const py::handle& value) {
         out.layers.clear();
         for (const auto& [first, last, is_fraction] : value.cast<std::vector<Range>>())
           out.layers.push_back({first, last, is_fraction});
       }},
      {"part",
       [&](const py::handle& value) {
         const auto [first, last] = value.cast<std::pair<double, double>>();
         out.part = {first, last};
       }},
      {"nulls", [&](const py::handle& value) { out.nulls = value.cast<int64_t>(); }},
      {"null_vectors",
       [&](const py::handle& value) {
         out.null_vectors = value.cast<std::map<std::string, std::vector<steering::ControlVector>>>();
       }},
      {"seed", [&](const py::handle& value) { out.seed = value.cast<uint64_t>(); }},
      {"later", [&](const py::handle& value) { out.later = value.cast<bool>(); }},
      {"sizes", [&](const py::handle& value) { out.sizes = value.cast<bool>(); }},
      {"leak", [&](const py::handle& value) { out.leak = value.cast<bool>(); }},
      {"tolerance", [&](const py::handle& value) { out.tolerance = value.cast<double>(); }},
      {"memory_budget", [&](const py::handle& value) { out.memory_budget = value.cast<int64_t>(); }},
      {"progress",
       [&](const py::handle& value) {
         out.progress = as_progress(py::reinterpret_borrow<py::object>(value));
       }},
      {"max_new_tokens", [&](const py::handle& value) { out.max_new_tokens = value.cast<int64_t>(); }},
      {"factor", [&](const py::handle& value) { out.factor = value.cast<double>(); }},
      {"more_repetition", [&](const py::handle& value) { out.more_repetition = value.cast<double>(); }},
      {"fine", [&](const py::handle& value) { out.fine = value.cast<bool>(); }},
  };
  for (const auto& [name, value] : given) {
    const auto text = name.cast<std::string>();
    const auto field = fields.find(text);
    if (field == fields.end()) throw py::type_error("dose: there is no option " + text);
    field->second(value);
  }
  return out;
}

template <typename Run>
auto without_gil(const Run& run) {
  const py::gil_scoped_release release;
  return run();
}

template <typename Class>
void bind_setting(Class& bound) {
  using Value = typename Class::type;
  bound.def_readonly("concept", &Value::concept_name)
      .def_readonly("strength", &Value::strength)
      .def_readonly("first_layer", &Value::first_layer)
      .def_readonly("last_layer", &Value::last_layer)
      .def_readonly("null_index", &Value::null_index);
}

}  // namespace

void bind_dose(py::module_& m) {
  py::class_<Dose> dose(m, "NativeDose", "What one injection does to the model: see introspect.dose.");
  bind_setting(dose);
  dose.def_readonly("kl", &Dose::kl)
      .def_readonly("kl_later", &Dose::kl_later)
      .def_readonly("kl_read", &Dose::kl_read)
      .def_readonly("sd", &Dose::sd)
      .def_readonly("sd_overall", &Dose::sd_overall)
      .def_readonly("relative", &Dose::relative)
      .def_readonly("leak", &Dose::leak)
      .def_readonly("leak_base", &Dose::leak_base)
      .def_readonly("next", &Dose::next)
      .def_readonly("next_base", &Dose::next_base);
  py::class_<SolvedDose>(m, "SolvedDose", "The injection that reaches a target.")
      .def_readonly("dose", &SolvedDose::dose)
      .def_readonly("target", &SolvedDose::target)
      .def_readonly("is_monotone", &SolvedDose::is_monotone,
                    "Whether more strength gave more dose wherever it was measured on the way.")
      .def_readonly("n_measured", &SolvedDose::n_measured);
  py::class_<EqualDose>(m, "EqualDose", "A null that does as much to the model as a vector.")
      .def_readonly("solved", &EqualDose::solved)
      .def_readonly("vector", &EqualDose::vector)
      .def_readonly("added", &EqualDose::added);
  py::class_<Coherence> coherence(m, "Coherence", "How steered text reads beside unsteered text.");
  bind_setting(coherence);
  coherence.def_readonly("perplexity", &Coherence::perplexity)
      .def_readonly("perplexity_base", &Coherence::perplexity_base)
      .def_readonly("repetition", &Coherence::repetition)
      .def_readonly("repetition_base", &Coherence::repetition_base)
      .def_readonly("is_coherent", &Coherence::is_coherent)
      .def_readonly("texts", &Coherence::texts)
      .def_readonly("texts_base", &Coherence::texts_base)
      .def_property_readonly("score", &Coherence::score);
  py::class_<CoherentWindow>(m, "CoherentWindow",
                             "The strengths from 0 on at which steered text is coherent.")
      .def_readonly("largest", &CoherentWindow::largest)
      .def_readonly("broken", &CoherentWindow::broken)
      .def_readonly("tried", &CoherentWindow::tried);

  py::class_<DoseSearch>(m, "DoseSearch", R"doc(
The search for the strength that gives a dose: what to measure next, and what came out.

Where the dose does not rise with the strength throughout, what is found is the smallest strength that reaches it, as far as
the search has seen.
)doc")
      .def(py::init<double, double, double, double>(), py::arg("target"), py::arg("start"), py::arg("scale"),
           py::arg("tolerance"), R"doc(
A search that has measured nothing.

Args:
    target: the dose.
    start: the first strength to try; 0 is a grid of ratio 2 from scale / 64 on.
    scale: a strength that does much: 1e-7 to 32 times it are tried.
    tolerance: how far off the dose may be, as a share of the target.

Raises:
    ValueError: numbers that are not finite and above 0.
)doc")
      .def("next", &DoseSearch::next, "The strengths to measure next, ascending.")
      .def("take", &DoseSearch::take, py::arg("doses"),
           "{strength: dose} of all that ``next`` has asked for. NaN is a dose that counts as none.")
      .def_property_readonly("is_done", &DoseSearch::is_done)
      .def_property_readonly("is_unreachable", &DoseSearch::is_unreachable, "No strength has the dose.")
      .def_property_readonly("found", &DoseSearch::found, "The strength; negative before it is found.")
      .def_property_readonly("target", &DoseSearch::target)
      .def_property_readonly("n_measured", &DoseSearch::n_measured)
      .def_property_readonly("doses", &DoseSearch::doses, "{strength: dose} of everything that was measured.")
      .def_property_readonly("is_monotone", &DoseSearch::is_monotone,
                             "Whether more strength gave more dose wherever it was measured.")
      .def_property_readonly("reached", &DoseSearch::reached, "The doses that were seen, in words.");

  m.attr("default_coherence_factor") = CoherenceOptions{}.factor;
  m.def(
      "parse_dose",
      [](const std::string& text) {
        const auto target = DoseTarget::parse(text);
        return std::pair(target.what, target.value);
      },
      py::arg("text"),
      "The name and the number of a dose such as 'kl=0.5'. Raises ValueError for any other text.");
  m.def(
      "measure_doses",
      [](const Model& model, const Context& context, const NamedVectors& vectors, const py::kwargs& options) {
        const auto how = as_options(options);
        return without_gil([&] { return measure_doses(model, as_context(context), vectors, how); });
      },
      py::arg("model"), py::arg("context"), py::arg("vectors"),
      "The dose of every vector, range and strength in a protocol or in prompts (token ids).");
  m.def(
      "solve_doses",
      [](const Model& model, const Context& context, const NamedVectors& vectors, const std::string& what,
         double value, const py::kwargs& options) {
        const auto how = as_options(options);
        return without_gil(
            [&] { return solve_doses(model, as_context(context), vectors, {what, value}, how); });
      },
      py::arg("model"), py::arg("context"), py::arg("vectors"), py::arg("what"), py::arg("value"),
      "The strength of every vector and range that gives the dose.");
  m.def(
      "equal_doses",
      [](const Model& model, const Context& context, const NamedVectors& vectors, const std::string& what,
         const py::kwargs& options) {
        const auto how = as_options(options);
        return without_gil([&] { return equal_doses(model, as_context(context), vectors, how, what); });
      },
      py::arg("model"), py::arg("context"), py::arg("vectors"), py::arg("what"),
      "Every null of the vectors at the strength that gives the vector's own dose.");
  m.def(
      "measure_coherence",
      [](const Model& model, const Context& context, const NamedVectors& vectors, const py::kwargs& options) {
        const auto how = as_options(options);
        return without_gil([&] { return measure_coherence(model, as_context(context), vectors, how); });
      },
      py::arg("model"), py::arg("context"), py::arg("vectors"),
      "How the text of every vector, range and strength reads.");
  m.def(
      "coherent_windows",
      [](const Model& model, const Context& context, const NamedVectors& vectors, const py::kwargs& options) {
        const auto how = as_options(options);
        return without_gil([&] { return coherent_windows(model, as_context(context), vectors, how); });
      },
      py::arg("model"), py::arg("context"), py::arg("vectors"),
      "The coherent window of every vector and range.");
}

}  // namespace introspect::python
