#include "bindings.h"

#include "introspect/engine/run_trie.h"
#include "native_model.h"

namespace introspect::python {

void bind_engine(py::module_& m) {
  using engine::TokenTrie;
  using engine::TriePlan;

  py::class_<TokenTrie>(m, "TokenTrie", R"doc(
A set of token sequences as a tree in which equal prefixes are one path.

Nodes are numbered depth first, so that a node's ancestors come before it.

Raises:
    ValueError: no sequences, or an empty one.
)doc")
      .def(py::init<const std::vector<std::vector<int64_t>>&>(), py::arg("sequences"))
      .def("__len__", &TokenTrie::size)
      .def_property_readonly("tokens", &TokenTrie::tokens, "The token of each node.")
      .def_property_readonly("parents", &TokenTrie::parents, "The parent of each node; -1 for a root.")
      .def_property_readonly("depths", &TokenTrie::depths, "The position of each node in its sequences.")
      .def_property_readonly("ends", &TokenTrie::ends, "The node of each sequence's last token.")
      .def("path", &TokenTrie::path, py::arg("node"), "The nodes from the root to one, both included.");

  py::class_<TriePlan>(m, "TriePlan", "How a trie is run under a memory budget.")
      .def_readonly("tokens", &TriePlan::tokens, "Of all sequences, as running them one by one would take.")
      .def_readonly("nodes", &TriePlan::nodes, "That are run instead.")
      .def_readonly("nodes_per_pass", &TriePlan::nodes_per_pass)
      .def_readonly("n_passes", &TriePlan::n_passes);

  m.def(
      "plan_trie",
      [](const models::Model& model, const TokenTrie& trie, int64_t memory_budget) {
        return engine::plan_trie(model, trie, {memory_budget, {}});
      },
      py::arg("model"), py::arg("trie"), py::kw_only(),
      py::arg("memory_budget") = engine::TrieOptions{}.memory_budget,
      R"doc(
How many passes of how many nodes ``run_trie`` makes of a trie.

Raises:
    ValueError: the budget (bytes) does not hold a pass of one node.
)doc");

  m.def(
      "run_trie",
      [](const py::object& model, const TokenTrie& trie, std::vector<int64_t> nodes,
         std::vector<int64_t> layers, const std::string& point, std::vector<int64_t> rows,
         bool last_layer_after_norm, int64_t memory_budget, py::object progress) {
        const engine::TrieReads reads{std::move(nodes), std::move(layers), hooks::parse_point(point),
                                      std::move(rows), last_layer_after_norm};
        const engine::TrieOptions options{memory_budget, as_progress(std::move(progress))};
        const auto native = native_model(model);
        const py::gil_scoped_release release;
        return engine::run_trie(*native, trie, reads, options);
      },
      py::arg("model"), py::arg("trie"), py::kw_only(), py::arg("nodes"), py::arg("layers"),
      py::arg("point") = "hook_resid_post", py::arg("rows") = std::vector<int64_t>{},
      py::arg("last_layer_after_norm") = false,
      py::arg("memory_budget") = engine::TrieOptions{}.memory_budget, py::arg("progress") = py::none(), R"doc(
Activations at nodes of a trie, where every node is run once, whatever sequences it belongs to.

Args:
    model: an introspect.Model, or its native model; what is hooked into it takes no part.
    nodes: in the order of the result's rows, unless ``rows`` says another.
    layers: block numbers, in the order of the result's columns.
    point: a hook point of a block that has a position: "hook_resid_post", "attn.hook_z".
    rows: the result's row of each of ``nodes``: a row is the mean over its nodes. Empty: every node is a row.
    last_layer_after_norm: read the last block's hook_resid_post as the final norm leaves it.
    memory_budget: bytes that the activations of one pass may take, weights and result aside.
    progress: called with (what, done, total).

Returns:
    float32 (float64 for a float64 model) [rows, layers, ...], what stands at the point for one position. Equal to
    running each sequence by itself up to rounding.

Raises:
    IndexError: a node or layer that is not there.
    HookError: a point that this model does not have.
    ShapeError: a sequence longer than n_ctx.
    ValueError: nothing to read, a row without nodes, another point after the norm, or a budget too small for one node.
)doc");
}

}  // namespace introspect::python
