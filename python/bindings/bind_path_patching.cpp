#include "bindings.h"

#include "introspect/analysis/path_patching.h"

namespace introspect::python {
namespace {

using analysis::PathPatchingOptions;
using analysis::PathReceiver;
using analysis::PathSender;
using ModelHandle = std::shared_ptr<models::Model>;

PathSender make_sender(const std::string& kind, int64_t layer, int64_t head) {
  if (kind == "input") return {PathSender::Kind::embed};
  if (kind == "head") return {PathSender::Kind::head, layer, head};
  if (kind == "mlp") return {PathSender::Kind::mlp, layer};
  throw std::invalid_argument("path_patching: senders are input, head or mlp, got " + kind);
}

PathReceiver make_receiver(const std::string& kind, int64_t layer, int64_t head) {
  if (kind == "q") return {PathReceiver::Kind::q, layer, head};
  if (kind == "k") return {PathReceiver::Kind::k, layer, head};
  if (kind == "v") return {PathReceiver::Kind::v, layer, head};
  if (kind == "mlp") return {PathReceiver::Kind::mlp, layer};
  if (kind == "logits") return {PathReceiver::Kind::logits};
  throw std::invalid_argument("path_patching: receivers are q, k, v, mlp or logits, got " + kind);
}

}  // namespace

void bind_path_patching(py::module_& m) {
  py::class_<PathSender>(m, "PathSender", "What writes to the residual stream: input, head or mlp.")
      .def(py::init(&make_sender), py::arg("kind"), py::arg("layer") = -1, py::arg("head") = -1);
  py::class_<PathReceiver>(m, "PathReceiver", "What reads the residual stream: q, k, v, mlp or logits.")
      .def(py::init(&make_receiver), py::arg("kind"), py::arg("layer") = -1, py::arg("head") = -1);
  m.def(
      "path_patching",
      [](const ModelHandle& model, const std::vector<analysis::PatchPair>& pairs,
         std::vector<std::vector<PathSender>> senders, std::vector<std::vector<PathReceiver>> receivers,
         bool freeze_mlps, std::vector<int64_t> positions, bool by_position, bool reference_is_to,
         int64_t most_cells, int64_t memory_budget, py::object progress) {
        const PathPatchingOptions options{
            std::move(senders),   std::move(receivers), freeze_mlps,
            std::move(positions), by_position,          reference_is_to,
            most_cells,           memory_budget,        as_shown_progress(std::move(progress))};
        const py::gil_scoped_release release;
        return analysis::path_patching(model, pairs, options);
      },
      py::arg("model"), py::arg("pairs"), py::kw_only(), py::arg("senders"), py::arg("receivers"),
      py::arg("freeze_mlps") = true, py::arg("positions") = std::vector<int64_t>(),
      py::arg("by_position") = false, py::arg("reference_is_to") = false,
      py::arg("most_cells") = PathPatchingOptions{}.most_cells,
      py::arg("memory_budget") = PathPatchingOptions{}.memory_budget, py::arg("progress") = py::none(),
      "Values [pairs, receivers, senders (, positions)]: see analysis.path_patching.");
}

}  // namespace introspect::python
