#include "bindings.h"

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/experiments/readouts.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/sae/feature_effects.h"
#include "introspect/sae/splice.h"

#include "native_model.h"

namespace introspect::python {
namespace {

using experiments::Value;
using sae::Dictionary;
using sae::FeatureEdit;
using Edits = std::vector<std::tuple<int64_t, double, double>>;

sae::Keeps parse_keeps(const std::string& word) {
  if (word == "nothing") return sae::Keeps::nothing;
  if (word == "error") return sae::Keeps::error;
  if (word == "everything") return sae::Keeps::everything;
  throw std::invalid_argument("splice: keeps must be 'nothing', 'error' or 'everything', got '" + word + "'");
}

hooks::Intervention splice(const Dictionary& dictionary, const Edits& edits, const std::string& keeps,
                           double strength, const std::string& hook_name, const std::string& hook_name_out) {
  std::vector<FeatureEdit> wanted;
  for (const auto& [feature, gain, value] : edits) wanted.push_back({feature, gain, value});
  return sae::splice(dictionary, wanted, parse_keeps(keeps), strength, {hook_name, hook_name_out});
}

py::tuple check_model(const Dictionary& dictionary, const py::object& model, const std::string& hook_name,
                      const std::string& hook_name_out, bool any_model) {
  const auto found =
      sae::check_model(dictionary, *native_model(model), {hook_name, hook_name_out}, any_model);
  return py::make_tuple(hooks::hook_name(found.input), hooks::hook_name(found.output), found.warnings);
}

torch::Tensor splice_seen(const Dictionary& dictionary, const torch::Tensor& x,
                          const std::optional<torch::Tensor>& source, bool keeps_error,
                          const py::function& see) {
  const py::gil_scoped_release release;
  return sae::splice_seen(dictionary, x, source.value_or(torch::Tensor{}), keeps_error,
                          [&see](const std::string& name, const torch::Tensor& value) {
                            const py::gil_scoped_acquire acquire;
                            return see(name, value).cast<torch::Tensor>();
                          });
}

/// The features of one reading: those that are asked for, or the largest.
Value::Fields features_of(const Dictionary& dictionary, const torch::Tensor& ids, int64_t top_k,
                          const torch::Tensor& x) {
  const at::NoGradGuard no_grad;
  const auto row = x.reshape({1, -1});
  torch::Tensor which = ids, values;
  if (ids.defined()) {
    values = dictionary.encode(row, ids)[0];
  } else {
    const auto f = dictionary.encode_sparse(row);
    const auto n = std::min<int64_t>(top_k, f.values.numel());
    const auto [largest, places] = f.values.abs().topk(n);
    which = f.indices.index_select(0, places);
    values = f.values.index_select(0, places);
  }
  return {{"ids", experiments::numbers(which.to(torch::kFloat64))},
          {"values", experiments::numbers(values.to(torch::kCPU, torch::kFloat64))}};
}

/// The stream of the read position at the dictionary's input, and its features.
void register_feature_readout(const std::string& name, const Dictionary& dictionary,
                              const std::string& hook_name,
                              const std::optional<std::vector<int64_t>>& features, int64_t top_k,
                              bool own_question_only) {
  torch::Tensor ids;
  if (features) ids = torch::tensor(*features, torch::kLong);
  experiments::Readout out;
  out.name = name;
  out.fields = {name};
  out.check_parameter = [](const Value&) { return std::string(); };
  out.check = [](const std::string&, const Value& value) {
    return value.get_if<Value::Fields>() ? std::string() : std::string("must have ids and values");
  };
  out.prepare =
      [=](const experiments::ReadoutRequest& request) -> std::optional<experiments::PreparedReadout> {
    if (!request.parameter) return std::nullopt;
    const auto site = models::hook_points(request.model.cfg()).parse(hook_name);
    experiments::Need need;
    need.read.point = site.point;
    need.read.layers = {site.layer};
    experiments::PreparedReadout prepared;
    prepared.needs = {need};
    prepared.own_question_only = own_question_only;
    prepared.fields = {{name}};
    prepared.key = {{"dictionary", dictionary.hash()}};
    prepared.read = [=](const experiments::ReadoutInputs& inputs) -> Value::Fields {
      return {{name, features_of(dictionary, ids, top_k, inputs.needed[0])}};
    };
    return prepared;
  };
  experiments::register_readout(std::move(out));
}

py::tuple feature_effects(const Dictionary& dictionary, const torch::Tensor& x, const torch::Tensor& gradient,
                          const std::optional<torch::Tensor>& source) {
  sae::FeatureEffects found;
  {
    const py::gil_scoped_release release;
    found = sae::feature_effects(dictionary, x, gradient, source.value_or(torch::Tensor{}));
  }
  return py::make_tuple(found.features.offsets, found.features.indices, found.features.values, found.effects,
                        found.error_N, found.bias_N);
}

}  // namespace

void bind_splice(py::module_& m) {
  m.def("splice", &splice, py::arg("dictionary"), py::kw_only(), py::arg("edits") = Edits{},
        py::arg("keeps") = "error", py::arg("strength") = 1.0, py::arg("hook_name") = "",
        py::arg("hook_name_out") = "", R"doc(
A dictionary as an Intervention: planned, by row, in graphs, under a KV cache and with gradients like any other.

With f = encode(x), f' its features after the edits and s the strength, x becomes x + s (y - x), y being decode(f') if
``keeps`` is "nothing", decode(f') + x - decode(f) if "error" and x + decode(f') if "everything". A transcoder encodes what
stands at its input and changes what stands at its output.

Args:
    edits: (feature, gain, value): f' = gain f + value. Adding is (i, 1, a), clamping (i, 0, c), scaling (i, g, 0),
        ablating (i, 0, 0).
    keeps: "error" computes the edited features only: x + s sum (f'_i - f_i) W_dec_i, and x itself where there are none.
    hook_name: where it reads, if it is not where it was trained.
    hook_name_out: where it writes.

Raises:
    ConfigError: a dictionary of several sites, of sites that are not known, or a batchtopk, whose rows depend on one
        another.
    HookError: there is no such point.
    IndexError: there is no such feature.
    ValueError: a feature that is edited twice, or numbers that are not finite.
)doc");
  m.def("check_dictionary", &check_model, py::arg("dictionary"), py::arg("model"), py::kw_only(),
        py::arg("hook_name") = "", py::arg("hook_name_out") = "", py::arg("any_model") = false, R"doc(
Where a dictionary stands in a model, and whether it belongs there: (hook it reads, hook it writes, warnings).

Args:
    hook_name: where it is to read, if not where it was trained.
    any_model: another model hash is a warning, not an error.

Raises:
    ConfigError: a model of another hash, or sites that are not known.
    HookError: a point or layer that the model does not have.
    ShapeError: another width.
)doc");
  m.def("splice_seen", &splice_seen, py::arg("dictionary"), py::arg("x"), py::arg("source"), py::kw_only(),
        py::arg("keeps_error"), py::arg("see"), R"doc(
What a dictionary makes of x, everything in between shown to ``see(name, tensor)``, whose answer goes on in its place.

Names and order are SAELens's: hook_sae_input, hook_sae_acts_pre, hook_sae_acts_post, hook_sae_recons, with the error
kept hook_sae_error, and hook_sae_output. The error is that of the features before anything is replaced, and a constant
for gradients. Nothing replaced: x, bit for bit, if the error is kept.

Args:
    source: what a transcoder reads; None is x.
)doc");
  m.def("feature_effects", &feature_effects, py::arg("dictionary"), py::arg("x"), py::arg("gradient"),
        py::arg("source") = py::none(), R"doc(
(offsets, indices, values, effects, error, bias): f_i (W_dec_i . gradient) of each feature of rows that is not 0.

Effects, error and bias of a row sum to x . gradient. Row n has the entries offsets[n] to offsets[n + 1].

Args:
    x: [n, d_out].
    gradient: of a number by x, [n, d_out].
    source: [n, d_in], what a transcoder reads.
)doc");
  m.def("register_feature_readout", &register_feature_readout, py::arg("name"), py::arg("dictionary"),
        py::kw_only(), py::arg("hook_name"), py::arg("features"), py::arg("top_k"),
        py::arg("own_question_only"), "See introspect.sae.feature_readout.");
}

}  // namespace introspect::python
