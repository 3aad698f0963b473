#include "introspect/circuits/circuit.h"

#include <algorithm>
#include <filesystem>

#include <catch2/catch.hpp>

#include "introspect/circuits/acdc.h"
#include "introspect/circuits/edge_attribution.h"
#include "introspect/circuits/run_circuit.h"
#include "introspect/core/error.h"

#include "or_gate.h"
#include "tiny_model.h"

using namespace introspect;
using namespace introspect::testing;
using circuits::Circuit;
using circuits::Nodes;

namespace {

std::vector<std::string> names(const Circuit& circuit) {
  std::vector<std::string> out;
  for (const auto& edge : circuit.edges())
    out.push_back(circuit.nodes.sender_name(edge.sender) + "->" + circuit.nodes.receiver_name(edge.receiver));
  return out;
}

circuits::Prompts gate_prompts() {
  circuits::Prompts out;
  out.clean = {torch::tensor({0}, torch::kLong)};
  out.corrupted = {torch::tensor({1}, torch::kLong)};
  out.metrics = {{{{.kind = analysis::MetricTerm::Kind::logit_difference, .right = {0}, .wrong = {1}}}}};
  return out;
}

}  // namespace

TEST_CASE("patching one edge of an OR gate changes nothing", "[circuits]") {
  const auto model = or_gate();
  const auto prompts = gate_prompts();
  const auto nodes = Nodes::of(model->cfg());
  circuits::EdgeAttributionOptions options;
  options.method = circuits::EdgeMethod::exact;
  const auto exact = circuits::edge_attribution(*model, prompts, options).circuit;
  const auto score = [&](int64_t sender) { return exact.scores[sender][nodes.mlp_reader(0)].item<double>(); };
  CHECK(score(nodes.head(0, 0)) == Approx(0).margin(1e-6));
  CHECK(score(nodes.head(0, 1)) == Approx(0).margin(1e-6));

  const auto gate = Circuit::of_edges(
      nodes, {"input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"});
  const auto one = Circuit::of_edges(nodes, {"input->a0.h1<v>", "a0.h1->m0", "m0->logits"});
  const auto none = Circuit::of_edges(nodes, {"m0->logits"});
  const auto values = circuits::run_circuits(*model, prompts, {gate, one, none}).squeeze(1);
  CHECK(at::allclose(values, torch::tensor({1., 1., 0.}, torch::kFloat64), 0, 1e-6));

  // One of the inputs is enough, so ACDC lets the first go that it tries, the later head, with all that feeds it.
  auto low = prompts;
  low.metrics[0].terms[0].weight = -1;
  circuits::AcdcOptions search;
  search.threshold = 0.1;
  const auto kept = circuits::acdc(*model, low, search).circuit;
  auto found = names(kept);
  std::ranges::sort(found);
  CHECK(found == std::vector<std::string>{"a0.h0->m0", "input->a0.h0<v>", "m0->logits"});
}

TEST_CASE("a circuit comes back from its file", "[circuits]") {
  const auto model = tiny_model();
  auto circuit = Circuit::whole(Nodes::of(model->cfg()));
  circuit = circuit.with_scores(random_tensor(circuit.scores.sizes(), 1)).top(40);
  REQUIRE(circuit.n_edges() > 5);
  const auto path = std::filesystem::temp_directory_path() / "introspect_circuit.json";
  for (const auto& one : {circuit, circuit.ungrouped()}) {
    one.save(path);
    const auto back = Circuit::load(path);
    CHECK(back.nodes == one.nodes);
    CHECK(back.in_graph.equal(one.in_graph));
    CHECK(back.scores.equal(one.scores));
    CHECK_NOTHROW(back.check_fits(model->cfg()));
  }
  std::filesystem::remove(path);
  // Halves for the two heads of a group, which sum to what the group has.
  CHECK(at::allclose(circuit.ungrouped().sender_scores(), circuit.sender_scores(), 0, 1e-12));
  CHECK_THROWS_AS(circuit.check_fits(tiny_model(0, torch::kFloat64, 3)->cfg()), ConfigError);
}
