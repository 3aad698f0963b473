#include "bindings.h"

#include "introspect/analysis/erasure.h"
#include "introspect/analysis/refusal_direction.h"
#include "introspect/core/check.h"
#include "introspect/models/orthogonalise.h"
#include "native_model.h"

namespace introspect::python {
namespace {

using namespace analysis;
using MaybeTensor = std::optional<torch::Tensor>;
using Texts = std::vector<std::string>;

void bind_leace(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  py::class_<LeaceEraser>(m, "LeaceEraser", R"doc(
Removes a concept from activations: x - proj_left proj_right (x - bias). ``LeaceFitter`` makes one.

After it no linear classifier of the activations it was fitted on does better than a constant one.
)doc")
      .def(py::init([](const torch::Tensor& left, const torch::Tensor& right, const MaybeTensor& bias) {
             return LeaceEraser{left.to(torch::kFloat64), right.to(torch::kFloat64),
                                bias ? bias->to(torch::kFloat64) : torch::Tensor{}};
           }),
           py::arg("proj_left"), py::arg("proj_right"), py::arg("bias") = py::none())
      .def_static(
          "fit",
          [](const torch::Tensor& x, const torch::Tensor& z, const std::string& method, bool affine,
             bool shrinkage, double svd_tol) {
            check<std::invalid_argument>(method == "leace" || method == "orth",
                                         "LeaceEraser: method must be leace or orth, got ", method);
            check<ShapeError>(x.dim() >= 1 && x.numel() > 0, "LeaceEraser.fit: x must be [n, d]");
            const int64_t rows = x.numel() / x.size(-1);
            check<ShapeError>(z.numel() > 0 && z.numel() % rows == 0, "LeaceEraser.fit: z must be [", rows,
                              ", k] or [", rows, "], got ", z.sizes());
            LeaceFitter fitter(x.size(-1), z.numel() / rows, {method == "orth", affine, shrinkage, svd_tol});
            fitter.update(x, z);
            return fitter.eraser();
          },
          py::arg("x"), py::arg("z"), py::kw_only(), py::arg("method") = "leace", py::arg("affine") = true,
          py::arg("shrinkage") = false, py::arg("svd_tol") = 0.01, release,
          "An eraser of one batch: LeaceFitter, update and eraser in one.")
      .def_property_readonly(
          "proj_left", [](const LeaceEraser& e) { return e.proj_left; }, "float64 [d, k].")
      .def_property_readonly(
          "proj_right", [](const LeaceEraser& e) { return e.proj_right; }, "float64 [k, d].")
      .def_property_readonly(
          "bias", [](const LeaceEraser& e) { return e.bias.defined() ? MaybeTensor(e.bias) : std::nullopt; },
          "float64 [d], the mean of x; None unless affine.")
      .def_property_readonly(
          "P",
          [](const LeaceEraser& e) {
            return torch::eye(e.proj_left.size(0), torch::kFloat64) - e.proj_left.mm(e.proj_right);
          },
          "The projection [d, d] of x - bias.")
      .def("__call__", &LeaceEraser::erase, py::arg("x"), release,
           "Activations [..., d] without the concept, in their dtype. Raises ShapeError for another width.")
      .def(
          "intervention",
          [](const LeaceEraser& e, int64_t layer, const std::string& point) {
            return e.as_intervention(layer, hooks::parse_point(point));
          },
          py::arg("layer"), py::kw_only(), py::arg("point") = "hook_resid_post",
          "The erasure at a point of one block, as operator \"leace\" of the planner.")
      .def("save", &LeaceEraser::save, py::arg("path"), release, "One .safetensors file. Raises IoError.")
      .def_static("load", &LeaceEraser::load, py::arg("path"), release, "Raises IoError.")
      .def("__repr__", [](const LeaceEraser& e) {
        return concat("LeaceEraser(d=", e.proj_left.size(0), ", rank ", e.proj_left.size(1), ")");
      });

  py::class_<LeaceFitter>(m, "LeaceFitter", R"doc(
Least-squares concept erasure from batches of activations, of which only means and covariances are kept, in float64.

Args:
    x_dim: width of the activations.
    z_dim: width of the concept: 1 for a number or two classes, the number of classes for one-hot labels.
    method: "leace", or "orth": the orthogonal projection off the cross-covariance.
    affine: the mean stays where it is.
    shrinkage: shrink the covariance of x; the guarantee is then not of the activations seen. concept-erasure does.
    svd_tol: singular values of the whitened cross-covariance up to it are taken for noise.

Raises:
    ValueError: sizes below 1, an unknown method, or a tolerance that is not above 0.

Source: Belrose et al. 2023, arXiv:2306.03819.
)doc")
      .def(py::init([](int64_t x_dim, int64_t z_dim, const std::string& method, bool affine, bool shrinkage,
                       double svd_tol) {
             check<std::invalid_argument>(method == "leace" || method == "orth",
                                          "LeaceFitter: method must be leace or orth, got ", method);
             return LeaceFitter(x_dim, z_dim, {method == "orth", affine, shrinkage, svd_tol});
           }),
           py::arg("x_dim"), py::arg("z_dim") = 1, py::kw_only(), py::arg("method") = "leace",
           py::arg("affine") = true, py::arg("shrinkage") = false, py::arg("svd_tol") = 0.01)
      .def(
          "update",
          [](LeaceFitter& f, const torch::Tensor& x, const torch::Tensor& z) -> LeaceFitter& {
            const py::gil_scoped_release unlocked;
            f.update(x, z);
            return f;
          },
          py::arg("x"), py::arg("z"), py::return_value_policy::reference_internal, R"doc(
Takes in a batch.

Args:
    x: [..., x_dim], any float dtype.
    z: [..., z_dim], or [...] for z_dim 1.

Raises:
    ShapeError: other shapes.
    ValueError: values that are not finite.
)doc")
      .def_property_readonly(
          "eraser", &LeaceFitter::eraser,
          "The eraser of what was seen. Raises ValueError for fewer than two rows or a concept that "
          "does not vary.")
      .def_property_readonly("n", &LeaceFitter::n, "Rows seen.")
      .def_property_readonly("mean_x", [](const LeaceFitter& f) { return f.mean_x().clone(); })
      .def_property_readonly("sigma_xz", &LeaceFitter::covariance_xz, "float64 [x_dim, z_dim].");
}

DirectionSearchOptions search_options(std::vector<int64_t> tokens, double most_kl, double least_induce,
                                      double depth, int64_t memory_budget, py::object progress) {
  return {
      std::move(tokens), most_kl, least_induce, depth, memory_budget, as_shown_progress(std::move(progress))};
}

void bind_directions(py::module_& m) {
  m.def(
      "mean_differences",
      [](const py::object& model, const Texts& positives, const Texts& negatives,
         const std::vector<int64_t>& positions, const std::vector<int64_t>& layers, int64_t memory_budget,
         py::object progress) {
        const auto native = native_model(model);
        const auto shown = as_shown_progress(std::move(progress));
        const py::gil_scoped_release unlocked;
        return mean_differences(*native, positives, negatives, positions, layers, memory_budget, shown);
      },
      py::arg("model"), py::arg("positives"), py::arg("negatives"), py::kw_only(), py::arg("positions"),
      py::arg("layers"), py::arg("memory_budget") = int64_t{1} << 30, py::arg("progress") = py::none(),
      "Mean activations of some texts less those of others before every block: float64 [positions, layers, "
      "d_model].");
  m.def(
      "ablation_everywhere",
      [](const py::object& model, const torch::Tensor& direction) {
        return ablation_everywhere(*native_model(model), direction);
      },
      py::arg("model"), py::arg("direction"), R"doc(
The direction [d_model] taken off all that is written to the residual stream, as three interventions.

Raises:
    ShapeError, ValueError: a direction that is none.
)doc");
  py::class_<DirectionScores>(m, "DirectionScores", R"doc(
What a direction does to a behaviour, whose p is the probability that one of its tokens comes next.

Attributes:
    layer, position: where it was read.
    bypass: mean of log p - log(1 - p) over positives with the direction ablated everywhere.
    induce: the same over negatives with it added before its layer.
    kl: nats over negatives, of the next token's distribution from that with the direction ablated.
)doc")
      .def_readonly("layer", &DirectionScores::layer)
      .def_readonly("position", &DirectionScores::position)
      .def_readonly("bypass", &DirectionScores::bypass)
      .def_readonly("induce", &DirectionScores::induce)
      .def_readonly("kl", &DirectionScores::kl);
  m.def(
      "score_directions",
      [](const py::object& model, const torch::Tensor& candidates, const std::vector<int64_t>& positions,
         const std::vector<int64_t>& layers, const Texts& positives, const Texts& negatives,
         std::vector<int64_t> tokens, int64_t memory_budget, py::object progress) {
        const auto native = native_model(model);
        const auto options = search_options(std::move(tokens), 0, 0, 0, memory_budget, std::move(progress));
        const py::gil_scoped_release unlocked;
        return score_directions(native, candidates, positions, layers, positives, negatives, options);
      },
      py::arg("model"), py::arg("candidates"), py::kw_only(), py::arg("positions"), py::arg("layers"),
      py::arg("positives"), py::arg("negatives"), py::arg("tokens"),
      py::arg("memory_budget") = int64_t{1} << 30, py::arg("progress") = py::none(),
      "DirectionScores of mean differences [positions, layers, d_model], in the order [layer, position].");
  m.def(
      "select_direction",
      [](const std::vector<DirectionScores>& scores, int64_t n_layers, double most_kl, double least_induce,
         double depth) {
        return select_direction(scores, n_layers, {{}, most_kl, least_induce, depth, 0, {}});
      },
      py::arg("scores"), py::kw_only(), py::arg("n_layers"), py::arg("most_kl") = 0.1,
      py::arg("least_induce") = 0.0, py::arg("depth") = 0.8,
      "The place of the lowest bypass score within the limits, or None.");
  m.def(
      "behaviour_score",
      [](const py::object& model, const Texts& texts, std::vector<int64_t> tokens) {
        const auto native = native_model(model);
        const py::gil_scoped_release unlocked;
        return behaviour_score(native, texts, {std::move(tokens)});
      },
      py::arg("model"), py::arg("texts"), py::kw_only(), py::arg("tokens"),
      "Mean of log p - log(1 - p) over texts, p the probability that one of the tokens comes next.");
  m.def(
      "n_tokens_after_instruction",
      [](const py::object& model) { return n_tokens_after_instruction(*native_model(model)); },
      py::arg("model"),
      "How many tokens the chat template puts after the user's message, the generation prompt included.");
  m.def(
      "orthogonalised",
      [](const py::object& model, const torch::Tensor& direction) {
        const auto native = native_model(model);
        const py::gil_scoped_release unlocked;
        return std::const_pointer_cast<models::Model>(models::orthogonalised(*native, direction));
      },
      py::arg("model"), py::arg("direction"),
      "The native model with weights that cannot write a direction: see introspect.analysis.orthogonalised.");
}

}  // namespace

void bind_erasure(py::module_& m) {
  bind_leace(m);
  bind_directions(m);
}

}  // namespace introspect::python
