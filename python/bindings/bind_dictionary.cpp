#include "bindings.h"

#include "introspect/core/check.h"
#include "introspect/sae/dictionary.h"
#include "introspect/sae/whitening.h"
#include "value_type.h"

namespace introspect::python {
namespace {

using sae::Dictionary;
using sae::DictionaryConfig;
using sae::DictionaryOrigin;
using sae::DictionarySite;
using sae::DictionaryWeights;
using sae::SparseFeatures;
using Tensors = std::map<std::string, torch::Tensor>;

sae::InputNorm parse_input_norm(const std::string& name) {
  std::string names;
  for (const auto norm : {sae::InputNorm::none, sae::InputNorm::scale, sae::InputNorm::constant_norm,
                          sae::InputNorm::layer_norm, sae::InputNorm::whitening}) {
    if (name == to_string(norm)) return norm;
    names += (names.empty() ? "" : ", ") + to_string(norm);
  }
  throw ConfigError("a dictionary's input norm must be one of " + names + ", got " + name);
}

DictionaryWeights as_weights(const Tensors& tensors) {
  const hooks::Operands given(hooks::Operands::Tensors(tensors.begin(), tensors.end()));
  auto out = DictionaryWeights::from_operands(given);
  const auto known = out.operands();
  for (const auto& [name, tensor] : given)
    check<ConfigError>(known.contains(name), "Dictionary: a dictionary has no weight named ", name);
  return out;
}

Tensors as_tensors(const DictionaryWeights& weights) {
  const auto operands = weights.operands();
  return {operands.begin(), operands.end()};
}

Dictionary make(const std::string& architecture, const Tensors& weights, double k, bool relu,
                bool subtract_b_dec, bool rank_by_decoder_norm, const std::string& input_norm,
                double input_scale, double layer_norm_eps, double residual_threshold,
                const DictionaryOrigin& origin) {
  DictionaryConfig config;
  config.architecture = sae::parse_architecture(architecture);
  config.k = k;
  config.relu = relu;
  config.subtract_b_dec = subtract_b_dec;
  config.rank_by_decoder_norm = rank_by_decoder_norm;
  config.input_norm = parse_input_norm(input_norm);
  config.input_scale = input_scale;
  config.layer_norm_eps = layer_norm_eps;
  config.residual_threshold = residual_threshold;
  return {config, as_weights(weights), origin};
}

/// The arguments of `make`, in its order.
using State = std::tuple<std::string, Tensors, double, bool, bool, bool, std::string, double, double, double,
                         DictionaryOrigin>;

State state_of(const Dictionary& d) {
  const auto& c = d.config();
  return {to_string(c.architecture),
          as_tensors(d.weights()),
          c.k,
          c.relu,
          c.subtract_b_dec,
          c.rank_by_decoder_norm,
          to_string(c.input_norm),
          c.input_scale,
          c.layer_norm_eps,
          c.residual_threshold,
          d.origin()};
}

using OriginState = std::tuple<std::vector<DictionarySite>, std::vector<DictionarySite>, std::string,
                               std::string, std::string, std::string, std::optional<int64_t>,
                               std::optional<bool>, bool, bool, std::string>;

OriginState state_of_origin(const DictionaryOrigin& o) {
  return {o.inputs,       o.outputs,     o.model_name,
          o.model_hash,   o.release,     o.sae_id,
          o.context_size, o.prepend_bos, o.centers_writing_weights,
          o.masks_bos,    o.notes};
}

DictionaryOrigin make_origin(std::vector<DictionarySite> inputs, std::vector<DictionarySite> outputs,
                             std::string model_name, std::string model_hash, std::string release,
                             std::string sae_id, std::optional<int64_t> context_size,
                             std::optional<bool> prepend_bos, bool centers_writing_weights, bool masks_bos,
                             std::string notes) {
  return {std::move(inputs),       std::move(outputs), std::move(model_name), std::move(model_hash),
          std::move(release),      std::move(sae_id),  context_size,          prepend_bos,
          centers_writing_weights, masks_bos,          std::move(notes)};
}

torch::Tensor encode(const Dictionary& dictionary, const torch::Tensor& x,
                     const std::optional<torch::Tensor>& features) {
  return features ? dictionary.encode(x, *features) : dictionary.encode(x);
}

torch::Tensor decode(const Dictionary& dictionary, const torch::Tensor& f,
                     const std::optional<torch::Tensor>& x) {
  return dictionary.decode(f, x.value_or(torch::Tensor{}));
}

torch::Tensor decode_sparse(const Dictionary& dictionary, const SparseFeatures& f,
                            const std::optional<torch::Tensor>& x) {
  return dictionary.decode(f, x.value_or(torch::Tensor{}));
}

std::optional<torch::Tensor> weight(const Dictionary& dictionary, const std::string& name) {
  const auto found = dictionary.weights().operands().get(name);
  return found.defined() ? std::optional(found) : std::nullopt;
}

void bind_origin(py::module_& m) {
  py::class_<DictionarySite> site(m, "DictionarySite", R"doc(
Where an activation stands that a dictionary reads or writes.

Args:
    hook_name: such as "blocks.3.hook_resid_post"; empty if not known.
    width: how many numbers a position has there; heads stand one after another.
    model: which one, of crosscoders between models.
)doc");
  copy_as_value(site);
  site.def(py::init<std::string, int64_t, int64_t>(), py::arg("hook_name"), py::arg("width"),
           py::arg("model") = 0)
      .def_readonly("hook_name", &DictionarySite::hook_name)
      .def_readonly("width", &DictionarySite::width)
      .def_readonly("model", &DictionarySite::model)
      .def(
          "__eq__", [](const DictionarySite& a, const DictionarySite& b) { return a == b; },
          py::is_operator())
      .def("__repr__",
           [](const DictionarySite& s) {
             return concat("DictionarySite('", s.hook_name, "', ", s.width,
                           s.model != 0 ? concat(", model=", s.model) : "", ")");
           })
      .def(py::pickle([](const DictionarySite& s) { return std::make_tuple(s.hook_name, s.width, s.model); },
                      [](const std::tuple<std::string, int64_t, int64_t>& s) {
                        return DictionarySite{std::get<0>(s), std::get<1>(s), std::get<2>(s)};
                      }));

  py::class_<DictionaryOrigin> origin(m, "DictionaryOrigin", R"doc(
What a dictionary was trained on, as far as is known. It is compared with a model before anything runs in it.

Args:
    inputs: sites side by side in what it reads; several of a crosscoder, none if not known.
    outputs: sites side by side in what it writes.
    model_name: of the model.
    model_hash: of the model's weights.
    release: of SAELens's list.
    sae_id: within the release.
    context_size: tokens of a training context.
    prepend_bos: whether contexts began with BOS.
    centers_writing_weights: whether the model's weights that write to the stream were less their mean.
    masks_bos: whether features are zero at BOS (circuit-tracer).
    notes: JSON, all that its file said.
)doc");
  copy_as_value(origin);
  origin
      .def(py::init(&make_origin), py::kw_only(), py::arg("inputs") = std::vector<DictionarySite>{},
           py::arg("outputs") = std::vector<DictionarySite>{}, py::arg("model_name") = "",
           py::arg("model_hash") = "", py::arg("release") = "", py::arg("sae_id") = "",
           py::arg("context_size") = py::none(), py::arg("prepend_bos") = py::none(),
           py::arg("centers_writing_weights") = false, py::arg("masks_bos") = false, py::arg("notes") = "{}")
      .def_readonly("inputs", &DictionaryOrigin::inputs)
      .def_readonly("outputs", &DictionaryOrigin::outputs)
      .def_readonly("model_name", &DictionaryOrigin::model_name)
      .def_readonly("model_hash", &DictionaryOrigin::model_hash)
      .def_readonly("release", &DictionaryOrigin::release)
      .def_readonly("sae_id", &DictionaryOrigin::sae_id)
      .def_readonly("context_size", &DictionaryOrigin::context_size)
      .def_readonly("prepend_bos", &DictionaryOrigin::prepend_bos)
      .def_readonly("centers_writing_weights", &DictionaryOrigin::centers_writing_weights)
      .def_readonly("masks_bos", &DictionaryOrigin::masks_bos)
      .def_readonly("notes", &DictionaryOrigin::notes)
      .def(
          "__eq__", [](const DictionaryOrigin& a, const DictionaryOrigin& b) { return a == b; },
          py::is_operator())
      .def(py::pickle(&state_of_origin,
                      [](const OriginState& state) { return std::apply(make_origin, state); }));
}

void bind_sparse_features(py::module_& m) {
  py::class_<SparseFeatures> type(m, "SparseFeatures", R"doc(
Features that are not 0, row by row: those of row n are entries ``offsets[n]`` to ``offsets[n + 1]``.

Args:
    offsets: int64 [N + 1].
    indices: int64 [entries], features, ascending within a row.
    values: [entries].
    d_sae: how many features there are.
)doc");
  copy_as_value(type);
  type.def(
          py::init([](const torch::Tensor& offsets, const torch::Tensor& indices, const torch::Tensor& values,
                      int64_t d_sae) { return SparseFeatures{{offsets, indices, values}, d_sae}; }),
          py::arg("offsets"), py::arg("indices"), py::arg("values"), py::arg("d_sae"))
      .def_static("of", &SparseFeatures::of, py::arg("f"), py::call_guard<py::gil_scoped_release>(),
                  "Those of f [N, d_sae] that are not 0. Raises ShapeError.")
      .def_property_readonly("offsets", [](const SparseFeatures& f) { return f.offsets; })
      .def_property_readonly("indices", [](const SparseFeatures& f) { return f.indices; })
      .def_property_readonly("values", [](const SparseFeatures& f) { return f.values; })
      .def_readonly("d_sae", &SparseFeatures::d_sae)
      .def("__len__", &SparseFeatures::rows)
      .def("dense", &SparseFeatures::dense, py::call_guard<py::gil_scoped_release>(),
           "[N, d_sae], with zeros.")
      .def(py::pickle(
          [](const SparseFeatures& f) { return std::make_tuple(f.offsets, f.indices, f.values, f.d_sae); },
          [](const std::tuple<torch::Tensor, torch::Tensor, torch::Tensor, int64_t>& s) {
            return SparseFeatures{{std::get<0>(s), std::get<1>(s), std::get<2>(s)}, std::get<3>(s)};
          }));
}

}  // namespace

void bind_dictionary(py::module_& m) {
  bind_origin(m);
  bind_sparse_features(m);
  m.def(
      "whitening",
      [](const torch::Tensor& rows, double eps) {
        sae::WhiteningStatistics statistics;
        statistics.add(rows);
        const auto found = statistics.whitening(eps);
        return std::make_tuple(found.mean_D, found.matrix_DD, found.inverse_DD);
      },
      py::arg("rows"), py::kw_only(), py::arg("eps") = sae::kWhiteningEps,
      py::call_guard<py::gil_scoped_release>(), R"doc(
The affine map that gives rows mean 0 and covariance 1: z = (x - mean) matrix, x = z inverse + mean.

Args:
    rows: [n, d], more than d of them.
    eps: added to the variances of the covariance's eigenvectors.

Returns:
    mean [d], matrix [d, d] and inverse [d, d], float64.

Raises:
    ShapeError: rows are not [n, d].
    ValueError: too few rows, or numbers that are not finite.

Source: arXiv:2511.13981.
)doc");

  py::class_<Dictionary> type(m, "Dictionary", R"doc(
A sparse autoencoder, transcoder or crosscoder. introspect.SAE is this with SAELens's names.

Args:
    architecture: "standard", "gated", "topk", "abstopk", "batchtopk", "jumprelu", "matching_pursuit" or "groupmax".
    weights: by name, feature by feature: W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec, threshold (jumprelu),
        b_gate, b_mag and r_mag (gated), W_skip [d_out, d_in]. One floating dtype and device.
    k: features of a row (topk, abstopk, groupmax), on average (batchtopk), or at most (matching_pursuit).
    relu: topk: False keeps those of the k largest that are below 0.
    subtract_b_dec: b_dec is taken off the input.
    rank_by_decoder_norm: pre-activations are times the norms of decoder rows, and decoding divides by them.
    input_norm: "none", "expected_average_only_in" (times input_scale), "constant_norm_rescale" or "layer_norm".
    input_scale: see input_norm.
    layer_norm_eps: added to the standard deviation.
    residual_threshold: matching_pursuit: a row whose rest is shorter is done.
    origin: what it was trained on.

Raises:
    ShapeError: tensors that do not fit one another.
    ConfigError: an unknown name; tensors that are missing, or not of this architecture.
    ValueError: weights that are not finite, negative thresholds, k out of 1 to d_sae, a scale out of range.
)doc");
  copy_as_value(type);
  type.def(py::init<const Dictionary&>(), py::arg("dictionary"), "The same dictionary; tensors are shared.")
      .def(py::init(&make), py::arg("architecture"), py::arg("weights"), py::kw_only(), py::arg("k") = 0.0,
           py::arg("relu") = true, py::arg("subtract_b_dec") = true, py::arg("rank_by_decoder_norm") = false,
           py::arg("input_norm") = "none", py::arg("input_scale") = 1.0, py::arg("layer_norm_eps") = 1e-5,
           py::arg("residual_threshold") = 1e-2,
           py::arg_v("origin", DictionaryOrigin{}, "DictionaryOrigin()"),
           py::call_guard<py::gil_scoped_release>())
      .def(py::pickle(&state_of, [](const State& state) { return std::apply(make, state); }))
      .def_property_readonly("architecture",
                             [](const Dictionary& d) { return to_string(d.config().architecture); })
      .def_property_readonly("k", [](const Dictionary& d) { return d.config().k; })
      .def_property_readonly("relu", [](const Dictionary& d) { return d.config().relu; })
      .def_property_readonly("subtract_b_dec", [](const Dictionary& d) { return d.config().subtract_b_dec; })
      .def_property_readonly("rank_by_decoder_norm",
                             [](const Dictionary& d) { return d.config().rank_by_decoder_norm; })
      .def_property_readonly("input_norm",
                             [](const Dictionary& d) { return to_string(d.config().input_norm); })
      .def_property_readonly("input_scale", [](const Dictionary& d) { return d.config().input_scale; })
      .def_property_readonly("layer_norm_eps", [](const Dictionary& d) { return d.config().layer_norm_eps; })
      .def_property_readonly("residual_threshold",
                             [](const Dictionary& d) { return d.config().residual_threshold; })
      .def_property_readonly("origin", &Dictionary::origin, "What it was trained on.")
      .def_property_readonly("d_in", &Dictionary::d_in)
      .def_property_readonly("d_out", &Dictionary::d_out)
      .def_property_readonly("d_sae", &Dictionary::d_sae)
      .def_property_readonly("dtype", &Dictionary::dtype)
      .def_property_readonly("device", &Dictionary::device)
      .def_property_readonly(
          "hash",
          [](const Dictionary& d) {
            const py::gil_scoped_release release;
            return d.hash();
          },
          "Hex SHA-256 of what it computes: of its settings and weights.")
      .def_property_readonly("needs_input", &Dictionary::needs_input,
                             "Whether decode needs the x that features are of.")
      .def_property_readonly("decoder_norms", &Dictionary::decoder_norms,
                             "Length of each decoder row, [d_sae].")
      .def_property_readonly(
          "weights", [](const Dictionary& d) { return as_tensors(d.weights()); },
          "{name: tensor}, feature by feature; not copies.")
      .def("weight", &weight, py::arg("name"), "One of `weights`; None if there is none.")
      .def("pre_activations", &Dictionary::pre_activations, py::arg("x"),
           py::call_guard<py::gil_scoped_release>(),
           R"doc(
What the features of x [.., d_in] are made of: [.., d_sae] (of gated ones without biases).

Raises:
    ShapeError: x is not [.., d_in].
    ConfigError: matching pursuit has none.
)doc")
      .def("encode", &encode, py::arg("x"), py::arg("features") = py::none(),
           py::call_guard<py::gil_scoped_release>(), R"doc(
Features of x [.., d_in]: [.., d_sae], or [.., n] of n of them. Rows of batchtopk are ranked together.

Args:
    x: any floating dtype.
    features: int64 [n]; standard, gated and jumprelu dictionaries compute no others.

Raises:
    ShapeError: x is not [.., d_in].
    IndexError: a feature that is not there.
)doc")
      .def("encode_sparse", &Dictionary::encode_sparse, py::arg("x"),
           py::call_guard<py::gil_scoped_release>(),
           "Features of rows x [N, d_in] that are not 0; no [N, d_sae] is made. No gradients. Raises "
           "ShapeError.")
      .def("decode", &decode, py::arg("f"), py::arg("x") = py::none(),
           py::call_guard<py::gil_scoped_release>(),
           R"doc(
What features f [.., d_sae] stand for: [.., d_out].

Args:
    f: any floating dtype.
    x: what f is of, for dictionaries with ``needs_input``: a skip, or a norm of each input.

Raises:
    ShapeError: f is not [.., d_sae].
    ValueError: x is needed.
)doc")
      .def("decode", &decode_sparse, py::arg("f"), py::arg("x") = py::none(),
           py::call_guard<py::gil_scoped_release>(), "The same of SparseFeatures: [N, d_out]. No gradients.")
      .def("__call__", &Dictionary::forward, py::arg("x"), py::call_guard<py::gil_scoped_release>(),
           "decode(encode(x)): [.., d_out]. Raises ShapeError.")
      .def("to", py::overload_cast<torch::ScalarType>(&Dictionary::to, py::const_), py::arg("dtype"),
           py::call_guard<py::gil_scoped_release>())
      .def("to", py::overload_cast<torch::Device>(&Dictionary::to, py::const_), py::arg("device"),
           py::call_guard<py::gil_scoped_release>())
      .def("fold_decoder_norm", &Dictionary::fold_decoder_norm, py::call_guard<py::gil_scoped_release>())
      .def("fold_input_scale", &Dictionary::fold_input_scale, py::call_guard<py::gil_scoped_release>())
      .def(
          "fold_whitening",
          [](const Dictionary& d, const torch::Tensor& mean, const torch::Tensor& matrix,
             const torch::Tensor& inverse) { return sae::fold_whitening(d, {mean, matrix, inverse}); },
          py::arg("mean"), py::arg("matrix"), py::arg("inverse"), py::call_guard<py::gil_scoped_release>(),
          "Of whitened rows one of the rows themselves: see SAE.fold_activation_whitening.")
      .def("with_origin", &Dictionary::with_origin, py::arg("origin"))
      .def(
          "__eq__", [](const Dictionary& a, const Dictionary& b) { return a.hash() == b.hash(); },
          py::is_operator(), py::call_guard<py::gil_scoped_release>())
      .def("__hash__", [](const Dictionary& d) { return std::hash<std::string>()(d.hash()); });
}

}  // namespace introspect::python
