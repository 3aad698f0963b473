#include "introspect/analysis/patchscope.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

namespace introspect::analysis {
namespace {

using hooks::Point;

int64_t from_start(int64_t position, size_t n_tokens, const char* what) {
  const auto T = static_cast<int64_t>(n_tokens);
  check<std::out_of_range>(position >= -T && position < T, "patchscope: ", what, " must be ", -T, " to ",
                           T - 1, " of a text of ", T, " tokens, got ", position);
  return position < 0 ? position + T : position;
}

}  // namespace

torch::Tensor patchscope(const graph::ModelPtr& model, const std::vector<int64_t>& source,
                         const std::vector<int64_t>& target, const PatchscopeOptions& options) {
  const auto L = model->cfg().n_layers;
  const auto check_layer = [&](int64_t layer) {
    check<std::out_of_range>(layer >= 0 && layer < L, "patchscope: layers must be 0 to ", L - 1, ", got ",
                             layer);
  };
  auto layers = options.layers;
  if (layers.empty()) {
    layers.resize(static_cast<size_t>(L));
    std::iota(layers.begin(), layers.end(), int64_t{0});
  }
  for (const auto layer : layers) check_layer(layer);
  if (options.target_layer) check_layer(*options.target_layer);
  check<std::invalid_argument>(!options.source_positions.empty(),
                               "patchscope: at least one source position is needed, got none");
  std::vector<int64_t> positions;
  for (const auto position : options.source_positions)
    positions.push_back(from_start(position, source.size(), "source positions"));
  const auto into = from_start(options.target_position, target.size(), "target_position");
  const auto reads = from_start(options.read_position, target.size(), "read_position");
  check<std::out_of_range>(reads >= into,
                           "patchscope: read_position must not be before target_position, got ", reads,
                           " and ", into);

  graph::RunOptions run;
  run.memory_budget = options.memory_budget;
  run.progress = options.progress;
  graph::Graph of_source;
  graph::Read taken;
  taken.positions = positions;
  taken.layers = layers;
  of_source.read(of_source.segment(model, source), taken);
  const auto resid_PLD = of_source.run(run)[0].values;

  graph::Graph patched;
  std::vector<graph::ReadId> cells;  // equal ones are one reading
  graph::Read last;
  last.positions = {reads};
  last.layers = {L - 1};
  for (size_t l = 0; l < layers.size(); ++l)
    for (size_t p = 0; p < positions.size(); ++p) {
      hooks::Intervention put;
      put.op = "replace";
      put.point = Point::kResidPost;
      const auto v = resid_PLD[static_cast<int64_t>(p)][static_cast<int64_t>(l)];
      put.values[options.target_layer.value_or(layers[l])] = v.to(model->dtype()).clone();
      put.positions = {into};
      cells.push_back(patched.read(patched.segment(model, target, {}, {put}), last));
    }
  const auto read = patched.run(run);
  std::vector<torch::Tensor> out;
  constexpr size_t kRows = 256;
  for (size_t first = 0; first < cells.size(); first += kRows) {
    std::vector<torch::Tensor> residuals;
    for (size_t i = first; i < std::min(first + kRows, cells.size()); ++i)
      residuals.push_back(read[static_cast<size_t>(cells[i])].values[0][0]);
    out.push_back(model->readout(at::stack(residuals)).log_softmax(-1).to(torch::kCPU));
  }
  return at::cat(out).view({static_cast<int64_t>(layers.size()), static_cast<int64_t>(positions.size()), -1});
}

}  // namespace introspect::analysis
