#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/sae/feature_statistics.h"
#include "native_model.h"
#include "value_type.h"

namespace introspect::python {
namespace {

using namespace sae;
using OptionalTensor = std::optional<torch::Tensor>;

FeatureActivationOptions options_of(const OptionalTensor& ids, int64_t batch_tokens, int64_t memory_budget,
                                    py::object progress) {
  return {ids.value_or(torch::Tensor()), batch_tokens, memory_budget, as_shown_progress(std::move(progress))};
}

void bind_values(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  using A = FeatureActivations;
  py::class_<A> type(m, "FeatureActivations", R"doc(
What single features did at every token of some contexts, feature by feature: what feature pages are made of.

Only what is not 0 is held. It needs neither the model nor the dictionary again.
)doc");
  copy_as_value(type);
  type.def_property_readonly(
          "tokens", [](const A& a) { return a.contexts.tokens_NT; }, "int64 [contexts, tokens].")
      .def_property_readonly(
          "lengths", [](const A& a) { return a.contexts.lengths_N; }, "int64 [contexts].")
      .def_property_readonly("special_tokens", [](const A& a) { return a.contexts.special_tokens; })
      .def_property_readonly(
          "ids", [](const A& a) { return a.ids_n; },
          "int64 [n]: the features that were looked at, ascending.")
      .def_property_readonly(
          "offsets", [](const A& a) { return a.offsets; },
          "int64 [n + 1]: feature ids[i] has entries offsets[i] to offsets[i + 1].")
      .def_property_readonly(
          "places", [](const A& a) { return a.places; }, "int64 [entries]: context * tokens + position.")
      .def_property_readonly(
          "values", [](const A& a) { return a.values; }, "float32 or float64 [entries], not 0.")
      .def_readonly("read_tokens", &A::read_tokens, "Neither padding nor special.")
      .def_readonly("d_sae", &A::d_sae)
      .def_readonly("dictionary_hash", &A::dictionary_hash)
      .def_readonly("model_name", &A::model_name)
      .def_readonly("model_hash", &A::model_hash)
      .def("index", &A::index, py::arg("feature"),
           "A feature's place in ids. Raises IndexError if it was not looked at.")
      .def("save", &A::save, py::arg("path"), release, "One .safetensors file. Raises IoError.")
      .def_static("load", &A::load, py::arg("path"), release, "Raises IoError.")
      .def("__repr__", [](const A& a) {
        return concat("FeatureActivations(", a.n_features(), " features, ", a.read_tokens, " tokens of ",
                      a.contexts.tokens_NT.size(0), " contexts, ", a.values.numel(), " entries)");
      });

  using T = FeatureTable;
  py::class_<T>(m, "FeatureTable", "One number a feature, in the order of FeatureActivations.ids.")
      .def_property_readonly(
          "count", [](const T& t) { return t.count; }, "int64: tokens at which it is not 0.")
      .def_property_readonly(
          "contexts", [](const T& t) { return t.contexts; }, "int64: contexts with such a token.")
      .def_property_readonly(
          "density", [](const T& t) { return t.density; }, "float64: share of the tokens read.")
      .def_property_readonly(
          "mean_active", [](const T& t) { return t.mean_active; }, "float64: mean where it is not 0.")
      .def_property_readonly("max_active", [](const T& t) { return t.max_active; }, "float64: the largest.");

  using G = ContextGroup;
  py::class_<G>(m, "ContextGroup", "Contexts in which a feature is active, each shown at one token.")
      .def_readonly("low", &G::low, "Of the values there; -1 of the top group.")
      .def_readonly("high", &G::high)
      .def_readonly("share", &G::share,
                    "Of the tokens read with a value from low to high; -1 of the top group.")
      .def_property_readonly(
          "rows", [](const G& g) { return g.rows_n; }, "int64 [n]: which context.")
      .def_property_readonly(
          "positions", [](const G& g) { return g.positions_n; }, "int64 [n]: the token.")
      .def_property_readonly(
          "values", [](const G& g) { return g.values_nT; }, "[n, tokens]: of the whole context.");

  using N = Neighbours;
  py::class_<N>(m, "Neighbours", "Features that are like one, the most alike first.")
      .def_property_readonly(
          "ids", [](const N& n) { return n.ids; }, "int64 [k].")
      .def_property_readonly(
          "similarity", [](const N& n) { return n.similarity; }, "float64 [k].")
      .def_property_readonly(
          "cosine", [](const N& n) { return n.cosine; }, "float64 [k].")
      .def_property_readonly(
          "shared", [](const N& n) { return n.shared.defined() ? py::cast(n.shared) : py::none(); },
          "int64 [k]: tokens at which both are not 0; None of decoder rows.");
}

}  // namespace

void bind_feature_statistics(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  const FeatureActivationOptions defaults;
  bind_values(m);
  m.def(
      "feature_activations",
      [](const py::object& model, const Dictionary& dictionary, const torch::Tensor& tokens,
         const OptionalTensor& lengths, std::vector<int64_t> special_tokens, const OptionalTensor& ids,
         int64_t batch_tokens, int64_t memory_budget, py::object progress) {
        const auto native = native_model(model);
        const auto options = options_of(ids, batch_tokens, memory_budget, std::move(progress));
        const py::gil_scoped_release released;
        return feature_activations(*native, dictionary,
                                   {tokens, lengths.value_or(torch::Tensor()), std::move(special_tokens)},
                                   options);
      },
      py::arg("model"), py::arg("dictionary"), py::arg("tokens"), py::kw_only(),
      py::arg("lengths") = py::none(), py::arg("special_tokens") = std::vector<int64_t>(),
      py::arg("ids") = py::none(), py::arg("batch_tokens") = defaults.batch_tokens,
      py::arg("memory_budget") = defaults.memory_budget, py::arg("progress") = py::none(), R"doc(
One pass of token contexts through the model, as far as needed, and the dictionary: see introspect.sae.feature_activations.

Args:
    tokens: int64 [contexts, tokens].
    lengths: int64 [contexts], of each; the rest is padding.
    special_tokens: ids that are run, and at which no feature is said to be active.
    ids: int64 [n], these features only.
    memory_budget: bytes of entries.

Raises:
    ConfigError, HookError, ShapeError: a dictionary that is not of this model.
    ValueError: no tokens, or more entries than fit the budget.
)doc");
  m.def(
      "read_contexts",
      [](const py::object& model, const std::vector<std::string>& hook_names, const torch::Tensor& tokens,
         const OptionalTensor& lengths, int64_t batch_tokens, py::object progress) {
        const auto native = native_model(model);
        const auto shown = as_shown_progress(std::move(progress));
        const py::gil_scoped_release released;
        return read_contexts(*native, hook_names, {tokens, lengths.value_or(torch::Tensor()), {}},
                             batch_tokens, shown);
      },
      py::arg("model"), py::arg("hook_names"), py::arg("tokens"), py::kw_only(),
      py::arg("lengths") = py::none(), py::arg("batch_tokens") = defaults.batch_tokens,
      py::arg("progress") = py::none(), R"doc(
What stands at hook points over token contexts, side by side: [contexts, tokens, width] in the model's dtype, 0 at padding.

Raises:
    HookError, ConfigError: a point that the model does not have, after the last block, or without a width.
    ShapeError: contexts that are too long.
)doc");
  m.def(
      "feature_activations_of_rows",
      [](const Dictionary& dictionary, const torch::Tensor& tokens, const torch::Tensor& x,
         const OptionalTensor& lengths, std::vector<int64_t> special_tokens, const OptionalTensor& ids,
         int64_t batch_tokens, int64_t memory_budget) {
        return feature_activations(dictionary,
                                   {tokens, lengths.value_or(torch::Tensor()), std::move(special_tokens)}, x,
                                   {ids.value_or(torch::Tensor()), batch_tokens, memory_budget, {}});
      },
      py::arg("dictionary"), py::arg("tokens"), py::arg("x"), py::kw_only(), py::arg("lengths") = py::none(),
      py::arg("special_tokens") = std::vector<int64_t>(), py::arg("ids") = py::none(),
      py::arg("batch_tokens") = defaults.batch_tokens, py::arg("memory_budget") = defaults.memory_budget,
      release, "The same for inputs that were read before, x [contexts, tokens, d_in].");
  m.def("feature_table", &feature_table, py::arg("activations"), release,
        "Counts, densities, mean and largest value of every feature.");
  m.def(
      "context_groups",
      [](const FeatureActivations& activations, int64_t feature, int64_t top, int64_t quantiles,
         int64_t per_quantile, uint64_t seed) {
        return context_groups(activations, feature, {top, quantiles, per_quantile, seed});
      },
      py::arg("activations"), py::arg("feature"), py::kw_only(), py::arg("top") = 20,
      py::arg("quantiles") = 5, py::arg("per_quantile") = 5, py::arg("seed") = 0, release, R"doc(
SAEDashboard's groups: the contexts with the highest values, then intervals of equal width from 0 to the largest value,
from the highest down, with contexts drawn from each. A dead feature has none.

Raises:
    IndexError: a feature that was not looked at.
)doc");
  m.def("feature_values", &feature_values, py::arg("activations"), py::arg("feature"), py::arg("rows"),
        release, "What a feature did in some contexts, [n, tokens]. Raises IndexError.");
  m.def("coactive_features", &coactive_features, py::arg("activations"), py::arg("feature"),
        py::arg("k") = 10, release,
        "The features whose values correlate most (Pearson, over the tokens read) with one's. Raises "
        "IndexError.");
  m.def("decoder_neighbours", &decoder_neighbours, py::arg("dictionary"), py::arg("feature"),
        py::arg("k") = 10, release,
        "The features whose decoder rows point most alike (cosine). Raises IndexError.");
  m.def(
      "logit_effects",
      [](const py::object& model, const Dictionary& dictionary, const torch::Tensor& ids, int64_t site) {
        const auto native = native_model(model);
        const py::gil_scoped_release released;
        return logit_effects(*native, dictionary, ids, site);
      },
      py::arg("model"), py::arg("dictionary"), py::arg("ids"), py::kw_only(), py::arg("site") = -1, R"doc(
What a unit of each feature adds to the logits on the direct path, [n, d_vocab].

W_dec (through W_O or W_out at attn.hook_z and mlp.hook_post) times the final norm's weight and W_U; LayerNorm takes the
mean off first. To have logits divide by the norm's denominator at the token; a soft cap is left out.

Args:
    ids: int64 [n].
    site: which output of a crosscoder; -1 is the last.

Raises:
    ConfigError: an output from which there is no linear way to the logits.
    IndexError: features or sites that are not there.
)doc");
}

}  // namespace introspect::python
