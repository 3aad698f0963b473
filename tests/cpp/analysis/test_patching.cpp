#include "introspect/analysis/patching.h"
#include "introspect/analysis/path_patching.h"

#include <catch2/catch.hpp>

#include "introspect/hooks/hook_registry.h"

#include "or_gate.h"
#include "tiny_model.h"

using namespace introspect;
using namespace introspect::testing;
using analysis::PatchPair;

namespace {

const std::vector<int64_t> kClean = {3, 7, 11, 2, 5, 9}, kCorrupted = {3, 7, 20, 31, 5, 9};
const analysis::Metric kMetric = {
    {{.kind = analysis::MetricTerm::Kind::logit_difference, .right = {4}, .wrong = {17}}}};

/// The metric of one plain pass with a hook that puts in one entry of the other run's activation.
double by_hook(const models::Model& model, hooks::Site site, int64_t position, int64_t head) {
  auto record = model.make_hooks();
  const auto seen = std::make_shared<hooks::ActivationCache>();
  record.record(hooks::hook_name(site), seen);
  models::ForwardOptions options;
  options.hooks = &record;
  model.forward(torch::tensor(kClean, torch::kLong).unsqueeze(0), options);
  const auto other = seen->at(site);
  auto patch = model.make_hooks();
  patch.add(hooks::hook_name(site), [&](const torch::Tensor& x, hooks::Site) -> std::optional<torch::Tensor> {
    auto out = x.clone();
    out[0][position][head].copy_(other[0][position][head]);
    return out;
  });
  options.hooks = &patch;
  const auto logits = model.forward(torch::tensor(kCorrupted, torch::kLong).unsqueeze(0), options);
  return analysis::of_logits(kMetric, logits[0]).item<double>();
}

}  // namespace

TEST_CASE("every cell of a grid of heads is a pass with one hook", "[patching]") {
  const auto model = tiny_model();
  for (const auto point : {hooks::Point::kZ, hooks::Point::kV}) {  // by query head, and by group
    analysis::PatchOptions options;
    options.axes = {.point = point, .by_head = true};
    const auto grid = analysis::patch_grid(model, {PatchPair{{kCorrupted}, {kClean}, kMetric}}, options);
    CHECK(grid.axes == std::vector<std::string>{"layer", "position", "head"});
    double largest = 0;
    for (int64_t layer = 0; layer < grid.values.size(1); ++layer)
      for (int64_t position = 0; position < grid.values.size(2); ++position)
        for (int64_t head = 0; head < grid.values.size(3); ++head) {
          const double expected = by_hook(*model, {point, layer}, position, head);
          CHECK(grid.values[0][layer][position][head].item<double>() == Approx(expected).margin(kFloor));
          largest = std::max(largest, std::abs(expected - grid.to[0].item<double>()));
        }
    CHECK(largest > 0.01);
    CHECK(grid.token_layers_to_run < grid.token_layers_asked);
  }
}

TEST_CASE("an OR gate loses its output when both paths into its MLP are patched", "[patching]") {
  using analysis::PathReceiver;
  using analysis::PathSender;
  const auto model = or_gate();
  const PathSender first{PathSender::Kind::head, 0, 0}, second{PathSender::Kind::head, 0, 1};
  analysis::PathPatchingOptions options;
  options.senders = {{first}, {second}, {first, second}};
  options.receivers = {{PathReceiver{PathReceiver::Kind::mlp, 0}}, {PathReceiver{}}};
  const analysis::Metric metric = {
      {{.kind = analysis::MetricTerm::Kind::logit_difference, .right = {0}, .wrong = {1}}}};
  const auto found = analysis::path_patching(model, {PatchPair{{{0}}, {{1}}, metric}}, options);
  CHECK(found.to[0].item<double>() == Approx(1));
  CHECK(found.from[0].item<double>() == Approx(0).margin(1e-6));
  const auto expected =
      torch::tensor({{1., 1., 0.}, {1., 1., 1.}}, torch::kFloat64);  // of the MLP, of the logits
  CHECK(at::allclose(found.values[0], expected, 0, 1e-6));
}
