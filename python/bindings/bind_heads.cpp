#include "bindings.h"

#include "introspect/analysis/heads.h"
#include "introspect/analysis/ov_copying.h"

namespace introspect::python {

namespace {

using models::Model;

analysis::MatchOptions match_options(bool exclude_bos, bool exclude_current_token,
                                     const std::string& measure) {
  if (measure != "mul" && measure != "abs")
    throw std::invalid_argument("detect_head: error_measure must be 'mul' or 'abs', got '" + measure + "'");
  return {exclude_bos, exclude_current_token, measure == "abs"};
}

analysis::OvCircuit parse_circuit(const std::string& circuit) {
  if (circuit == "head") return analysis::OvCircuit::kHead;
  if (circuit == "full") return analysis::OvCircuit::kFull;
  throw std::invalid_argument("ov_copying_scores: circuit must be 'head' or 'full', got '" + circuit + "'");
}

}  // namespace

void bind_heads(py::module_& m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def(
      "match_pattern",
      [](const torch::Tensor& attention, const torch::Tensor& detection, bool exclude_bos,
         bool exclude_current_token, const std::string& error_measure) {
        return analysis::match_pattern(attention, detection,
                                       match_options(exclude_bos, exclude_current_token, error_measure));
      },
      py::arg("attention"), py::arg("detection"), py::kw_only(), py::arg("exclude_bos") = false,
      py::arg("exclude_current_token") = false, py::arg("error_measure") = "mul", release,
      R"doc(
How well attention [..., pos, pos] shows a lower triangular pattern [pos, pos]: float64 [...].

Args:
    exclude_bos: attention to position 0 counts for nothing.
    exclude_current_token: nor does that of a position to itself.
    error_measure: "mul", sum(A D) / sum(A), or "abs", 1 - sum|A - D| / pos with the sum rounded to three digits.

Raises:
    ShapeError: other shapes.
    ValueError: a pattern that is not zero above the diagonal.
)doc");
  m.def(
      "match_heads",
      [](const Model& model, const torch::Tensor& tokens, const torch::Tensor& detection, int64_t n_layers,
         bool exclude_bos, bool exclude_current_token, const std::string& error_measure) {
        return analysis::match_heads(model, tokens, detection,
                                     match_options(exclude_bos, exclude_current_token, error_measure),
                                     n_layers);
      },
      py::arg("model"), py::arg("tokens"), py::arg("detection"), py::kw_only(), py::arg("n_layers"),
      py::arg("exclude_bos") = false, py::arg("exclude_current_token") = false,
      py::arg("error_measure") = "mul", release,
      "match_pattern of every head of the first n_layers blocks on tokens [pos]: float64 [n_layers, "
      "n_heads].");
  m.def(
      "head_scores",
      [](const Model& model, const std::vector<torch::Tensor>& texts,
         std::map<std::string, torch::Tensor> patterns, py::object progress) {
        const analysis::HeadScoreOptions options{std::move(patterns), as_shown_progress(std::move(progress))};
        const py::gil_scoped_release unlocked;
        auto scores = analysis::head_scores(model, texts, options);
        return std::make_tuple(std::move(scores.names), std::move(scores.values),
                               std::move(scores.n_positions));
      },
      py::arg("model"), py::arg("texts"), py::kw_only(),
      py::arg("patterns") = std::map<std::string, torch::Tensor>{}, py::arg("progress") = py::none(), R"doc(
What every head attends to in texts: see introspect.analysis.head_scores.

Args:
    texts: int64 [batch, pos] each.
    patterns: further ones, [pos, pos] and lower triangular.

Returns:
    Names, float64 [names, n_layers, n_heads] (NaN where no position counts), and the positions each is a mean over.
)doc");
  m.def(
      "ov_copying_scores",
      [](const Model& model, const std::string& circuit) {
        return analysis::ov_copying_scores(model, parse_circuit(circuit));
      },
      py::arg("model"), py::arg("circuit") = "full", release, R"doc(
How much each head copies what it attends to, from eigenvalues: Re(sum) / sum of moduli, float64 [n_layers, n_heads].

1: the head raises what it reads, -1: it lowers that. Weights of norms count as parts of the matrices; divisions by
their scales and biases are left out. Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

Args:
    circuit: "head", of W_V W_O, or "full", of W_E W_V W_O W_U, from tokens to logits.
)doc");
  m.def(
      "copy_scores",
      [](const Model& model, const std::vector<torch::Tensor>& texts, int64_t top_k, int64_t max_tokens,
         py::object progress) {
        const analysis::CopyOptions options{top_k, max_tokens, as_shown_progress(std::move(progress))};
        const py::gil_scoped_release unlocked;
        auto scores = analysis::copy_scores(model, texts, options);
        return std::make_tuple(scores.name_mover, scores.copy_suppression, scores.ov_diagonal);
      },
      py::arg("model"), py::arg("texts"), py::kw_only(), py::arg("top_k") = 5, py::arg("max_tokens") = 100,
      py::arg("progress") = py::none(), R"doc(
What heads would do to the logit of a token that they attend to with all their weight.

Each distinct token's residual after block 0 goes through the head's values and output, the final norm and the
unembedding.

Args:
    texts: int64 [batch, pos] each; position 0 is left out.
    max_tokens: how many distinct tokens are read, the first of the texts.

Returns:
    Three float64 [n_layers, n_heads]: the share of tokens that are among the ``top_k`` of what the head writes (the
    copy score of name movers: Wang et al. 2022), among those of its negative (copy suppression: McDougall et al. 2023),
    and the mean logit of the token less its mean over the vocabulary.
)doc");
}

}  // namespace introspect::python
