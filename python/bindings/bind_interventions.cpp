#include "bindings.h"

#include <algorithm>
#include <variant>

#include "introspect/hooks/intervention_json.h"
#include "value_type.h"

namespace introspect::python {

namespace {

using hooks::Intervention;
using hooks::TextFilter;

std::vector<int64_t> ascending(std::optional<std::vector<int64_t>> tokens) {
  auto out = std::move(tokens).value_or(std::vector<int64_t>{});
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

void bind_text_filter(py::module_& m) {
  using Ids = std::vector<int64_t>;
  using Tokens = std::optional<Ids>;
  using FilterState = std::tuple<std::string, Ids, Ids, Ids, bool>;
  py::class_<TextFilter> type(m, "TextFilter", R"doc(
Restricts an intervention to some of its positions by the text that stands there, row by row.

What it lets through is the same in one pass, in chunks through a KV cache, in every step of a generation, and, with
``skip_padding``, in a padded batch.

Args:
    phase: "all", "prompt" (every position of the prompt) or "generation" (every position that a new token is predicted
        from: the prompt's last one, then the new tokens).
    tokens: only where one of these ids stands; None is any.
    not_tokens: nowhere where one of these stands.
    after: only after the first of these; None is from the start.
    skip_padding: padding is never changed, and positions count real tokens only: a row of a padded batch is changed as
        it would be alone.

Raises:
    ValueError: another phase.
)doc");
  copy_as_value(type);
  type.def(py::init([](const std::string& phase, Tokens tokens, Tokens not_tokens, Tokens after,
                       bool skip_padding) {
             return TextFilter{hooks::parse_phase(phase), ascending(std::move(tokens)),
                               ascending(std::move(not_tokens)), ascending(std::move(after)), skip_padding};
           }),
           py::kw_only(), py::arg("phase") = "all", py::arg("tokens") = py::none(),
           py::arg("not_tokens") = py::none(), py::arg("after") = py::none(), py::arg("skip_padding") = false)
      .def_property_readonly("phase",
                             [](const TextFilter& filter) { return hooks::phase_name(filter.phase); })
      .def_readonly("tokens", &TextFilter::tokens)
      .def_readonly("not_tokens", &TextFilter::not_tokens)
      .def_readonly("after", &TextFilter::after)
      .def_readonly("skip_padding", &TextFilter::skip_padding)
      .def("__eq__", &TextFilter::operator==, py::arg("other"), py::is_operator())
      .def(py::pickle(
          [](const TextFilter& f) {
            return FilterState(hooks::phase_name(f.phase), f.tokens, f.not_tokens, f.after, f.skip_padding);
          },
          [](const FilterState& state) {
            const auto& [phase, tokens, not_tokens, after, skip_padding] = state;
            return TextFilter{hooks::parse_phase(phase), tokens, not_tokens, after, skip_padding};
          }));
}

using Named = std::map<std::string, torch::Tensor>;
using Values = std::map<int64_t, std::optional<std::variant<torch::Tensor, Named>>>;

hooks::Operands as_operands(std::variant<torch::Tensor, Named> value) {
  if (auto* v = std::get_if<torch::Tensor>(&value)) return std::move(*v);
  auto& named = std::get<Named>(value);
  return hooks::Operands::Tensors(named.begin(), named.end());
}

Values values_in_python(const Intervention& i) {
  Values out;
  for (const auto& [layer, operands] : i.values) {
    auto& value = out[layer];
    if (operands.is_v())
      value = operands.v();
    else if (!operands.empty())
      value = Named(operands.begin(), operands.end());
  }
  return out;
}

void bind_intervention(py::module_& m) {
  py::class_<Intervention>(m, "Intervention", R"doc(
A change to activations, as data: an operator on a selection of rows, positions and heads at one hook point.

With x the activation, v the layer's operand and s the strength, the operators are

- ``add``: x + s v
- ``ablate``: x - s (x.u) u with u = v / |v|
- ``project_out``: x - s (x Q) Q^T, Q an orthonormal basis of v's rows, which must be independent
- ``replace``: v; s must be 1
- ``interpolate``: (1 - s) x + s v
- ``scale``: s x
- ``zero``: 0; s must be 1
- ``mean``: v, or the mean of x over the selected positions, which must all be in one pass; s must be 1

A strength of 0 (of 1 for scale) leaves the pass as it was, bit for bit. Gradients flow to x and to the operands.
Replacing a pattern or a norm's scale by what was recorded freezes it.

Operators of control vectors, with u = v / |v|; the last three also take v [2, W], whose rows span a plane:

- ``norm_preserving_add``: (x + s v) |x| / |x + s v|
- ``multiply``: x (1 + s (v - 1)), element by element
- ``project_to``: x + s (target - x.u) u
- ``clamp``: x + s (min(max(x.u, low), high) - x.u) u; either end may be left out
- ``rotate``: x turned by s ``angle`` degrees towards v, or from row 0 towards row 1
- ``angular``: x put ``angle`` degrees from v, or its part in the plane from row 0 towards row 1; s must be 1 (Vu &
  Nguyen 2025, arXiv:2510.26243)
- ``adaptive_angular``: the same where the product of x and row 0 is positive; s must be 1

Args:
    values: layer -> operand, None for operators without one, {name: tensor} for those that take several; layer -1 for
        points that stand once in the model.
        With W the size of the activation's last dimension, N the number of rows or 1, h the number of heads and
        P positions counted from the start of the sequence: [W], [N, W] or [N, P, W] at points without heads; [W],
        [h, W], [N, h, W] or [N, P, h, W] at points with; at scores and patterns the last is [N, h, P, W], with W
        keys counted from the start of the sequence. [W] or [k, W] for project_out.
    op: the operator's name.
    point: a hook name without its block, such as "attn.hook_z".
    strength: finite.
    parameters: numbers by name, of operators that take some: {"angle": 30.0}.
    first_position: first position that is changed, counted from the start of the KV cache, padding included.
    last_position: the position after the last; None for every later one, generated ones too.
    positions: these instead of the range.
    heads: the heads that are changed (groups at points of keys and values); None is all.
    rows: the rows of the batch that are changed; None is all.
    text: of these positions, only those that a TextFilter lets through.
    source: of operators that read a second point, that point: "hook_mlp_in". The activation is taken as it goes on from
        there, at the same rows and positions.
    source_layer: the layer in which it is read; None is the one that is changed.

Raises:
    HookError: there is no such point.
)doc")
      .def(py::init([](Values values, std::string op, const std::string& point, double strength,
                       int64_t first_position, std::optional<int64_t> last_position,
                       std::optional<std::vector<int64_t>> positions,
                       std::optional<std::vector<int64_t>> heads, std::optional<std::vector<int64_t>> rows,
                       hooks::Parameters parameters, const TextFilter& text,
                       const std::optional<std::string>& source, std::optional<int64_t> source_layer) {
             Intervention i;
             i.op = std::move(op);
             i.point = hooks::parse_point(point);
             for (auto& [layer, value] : values)
               i.values[layer] = value ? as_operands(std::move(*value)) : hooks::Operands{};
             i.strength = strength;
             i.first_position = first_position;
             i.last_position = last_position.value_or(i.last_position);
             i.positions = std::move(positions).value_or(i.positions);
             i.heads = std::move(heads).value_or(i.heads);
             i.rows = std::move(rows).value_or(i.rows);
             i.parameters = std::move(parameters);
             i.text = text;
             if (source) i.source = hooks::parse_point(*source);
             i.source_layer = source_layer;
             return i;
           }),
           py::arg("values"), py::kw_only(), py::arg("op") = "add", py::arg("point") = "hook_resid_post",
           py::arg("strength") = 1.0, py::arg("first_position") = 0, py::arg("last_position") = py::none(),
           py::arg("positions") = py::none(), py::arg("heads") = py::none(), py::arg("rows") = py::none(),
           py::arg("parameters") = hooks::Parameters{}, py::arg_v("text", TextFilter{}, "TextFilter()"),
           py::arg("source") = py::none(), py::arg("source_layer") = py::none())
      .def_property_readonly("values", &values_in_python, "layer -> operand, {name: tensor}, or None.")
      .def_readonly("op", &Intervention::op)
      .def_property_readonly("point", [](const Intervention& i) { return hooks::point_name(i.point); })
      .def_readonly("strength", &Intervention::strength)
      .def_readonly("first_position", &Intervention::first_position)
      .def_property_readonly("last_position",
                             [](const Intervention& i) -> std::optional<int64_t> {
                               const bool open = i.last_position == std::numeric_limits<int64_t>::max();
                               return open ? std::nullopt : std::optional(i.last_position);
                             })
      .def_readonly("positions", &Intervention::positions)
      .def_readonly("heads", &Intervention::heads)
      .def_readonly("rows", &Intervention::rows)
      .def_readonly("parameters", &Intervention::parameters)
      .def_readonly("text", &Intervention::text)
      .def_property_readonly("source",
                             [](const Intervention& i) {
                               return i.source ? std::optional(hooks::point_name(*i.source)) : std::nullopt;
                             })
      .def_readonly("source_layer", &Intervention::source_layer)
      .def_property_readonly("is_identity", &hooks::is_identity, "True if nothing is changed by it.")
      .def(
          "first_change",
          [](const Intervention& i) -> std::optional<std::pair<int64_t, int64_t>> {
            const auto first = hooks::first_change(i);
            return first ? std::optional(std::pair(first->layer, first->position)) : std::nullopt;
          },
          "(layer, position) of the first change it can make, layer -1 before the first block; None for no "
          "change.")
      .def("restrict_rows", &hooks::restrict_rows, py::arg("rows"),
           "The same for those of its rows that are among ``rows``, with their operands; None if none is.")
      .def(
          "resolve",
          [](const Intervention& i, const torch::Tensor& tokens, std::optional<torch::Tensor> attention_mask,
             std::optional<int64_t> n_prompt) {
            hooks::Text text{tokens, 0, attention_mask.value_or(torch::Tensor{}), n_prompt};
            return hooks::resolve(i, text);
          },
          py::arg("tokens"), py::arg("attention_mask") = py::none(), py::kw_only(),
          py::arg("n_prompt") = py::none(),
          R"doc(
The intervention on the whole of a text, without a text filter: one for each choice of positions that rows share.

Args:
    tokens: int64 [batch, pos], on the CPU, of everything that will ever be run.
    attention_mask: bool [batch, pos], False for padding.
    n_prompt: how many of the positions are the prompt.

Raises:
    HookError: the filter asks for the prompt, and n_prompt is not given.
)doc")
      .def(
          "to_json",
          [](const Intervention& i) {
            const py::gil_scoped_release release;
            hooks::TensorTable table;
            auto json = hooks::to_json(i, table);
            return std::pair(std::move(json), std::move(table));
          },
          "The intervention as JSON in which tensors stand by their SHA-256, and {hash: tensor on the CPU}.")
      .def_static("from_json", &hooks::from_json, py::arg("json"), py::arg("table"),
                  py::call_guard<py::gil_scoped_release>(), R"doc(
The intervention that to_json described.

Raises:
    ConfigError: not an intervention, an operator that is not known, a hash that is not in the table, or a tensor
        that does not have its hash.
    HookError: there is no such point.
)doc")
      .def("__copy__", [](const Intervention& i) { return i; })
      .def(
          "__deepcopy__",
          [](Intervention i, const py::dict&) {
            for (auto& [layer, operands] : i.values) operands = operands.clone();
            return i;
          },
          py::arg("memo"))
      .def(py::pickle(
          [](const Intervention& i) {
            hooks::TensorTable table;
            auto json = hooks::to_json(i, table);
            return std::pair(std::move(json), std::move(table));
          },
          [](const std::pair<std::string, hooks::TensorTable>& state) {
            return hooks::from_json(state.first, state.second);
          }));
}

}  // namespace

void bind_interventions(py::module_& m) {
  bind_text_filter(m);
  bind_intervention(m);
}

}  // namespace introspect::python
