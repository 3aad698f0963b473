#include <cmath>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include "../tiny_model.h"
#include "introspect/core/error.h"
#include "introspect/experiments/coherence.h"
#include "introspect/experiments/dose.h"
#include "introspect/experiments/dose_search.h"

using namespace introspect;
using namespace introspect::experiments;
using testing::kFloor;

namespace {

const std::vector<std::vector<int64_t>> kPrompts{{3, 17, 5, 9, 30, 2}, {8, 8, 21}};

steering::ControlVector vector_of(uint64_t seed) {
  return {"qwen2",
          {{1, testing::random_tensor({16}, seed).to(torch::kFloat32)},
           {2, testing::random_tensor({16}, seed + 1).to(torch::kFloat32)}}};
}

/// KL(steered || base) at every token of a prompt, by whole passes.
torch::Tensor divergences(const models::Model& model, const std::vector<int64_t>& prompt,
                          const steering::ControlVector& vector, double strength) {
  const auto tokens = at::tensor(prompt, torch::kInt64).unsqueeze(0);
  auto registry = model.make_hooks();
  auto added = steering::as_intervention(vector, model.cfg().n_layers, 1, 2);
  added.strength = strength;
  registry.add(added);
  models::ForwardOptions steered;
  steered.hooks = &registry;
  const auto log_p = model.forward(tokens, steered)[0].log_softmax(-1);
  return (log_p.exp() * (log_p - model.forward(tokens)[0].log_softmax(-1))).sum(-1);
}

double dose_of(const models::Model& model, const steering::ControlVector& vector, double strength) {
  std::vector<torch::Tensor> all;
  for (const auto& prompt : kPrompts) all.push_back(divergences(model, prompt, vector, strength));
  return at::cat(all).mean().item<double>();
}

CoherenceOptions absolute() {
  CoherenceOptions out;
  out.strength_unit = StrengthUnit::absolute;
  out.layers = {LayerRange::blocks(1, 2)};
  out.max_new_tokens = 5;
  return out;
}

}  // namespace

TEST_CASE("a dose is the mean divergence of whole passes", "[experiments][dose]") {
  const auto model = testing::tiny_model();
  const auto one = vector_of(100), other = vector_of(200);
  auto options = absolute();
  options.strengths = {0.5, 2.0};
  const auto doses = measure_doses(model, kPrompts, {{"one", one}, {"other", other}}, options);
  REQUIRE(doses.size() == 4);
  for (size_t i = 0; i < doses.size(); ++i) {
    CHECK(doses[i].strength == options.strengths[i % 2]);
    CHECK(doses[i].kl ==
          Approx(dose_of(*model, i < 2 ? one : other, doses[i].strength)).epsilon(kFloor).margin(kFloor));
    CHECK(std::isnan(doses[i].kl_later));
  }
}

TEST_CASE("a solved strength gives the dose, and takes its place in an experiment", "[experiments][dose]") {
  const auto model = testing::tiny_model();
  const auto vector = vector_of(100);
  const auto solved =
      solve_doses(model, kPrompts, {{"one", vector}}, DoseTarget::parse("kl=0.02"), absolute());
  REQUIRE(solved.size() == 1);
  CHECK(dose_of(*model, vector, solved[0].dose.strength) == Approx(0.02).epsilon(1e-3));
  const auto own = strengths_of_doses(model, kPrompts, {{"one", vector}}, {"kl=0.02", "sd=1"}, absolute());
  REQUIRE(own.size() == 1);
  CHECK(own[0].concept_name == "one");
  CHECK(own[0].first_layer == 1);
  CHECK(own[0].last_layer == 2);
  REQUIRE(own[0].strengths.size() == 2);
  CHECK(own[0].strengths[0] == solved[0].dose.strength);
}

TEST_CASE("a target is a name and a number above 0", "[experiments][dose]") {
  CHECK(DoseTarget::parse("kl_later=1e-2").what == "kl_later");
  CHECK(DoseTarget::parse("sd=2").text() == "sd=2");
  for (const auto* text : {"kl", "kl=", "kl=-1", "kl=0", "kl=abc", "kl=nan", "kl= 1", "nats=1", ""})
    CHECK_THROWS_AS(DoseTarget::parse(text), std::invalid_argument);
}

TEST_CASE("what cannot be solved or is no prompt is refused", "[experiments][dose]") {
  const auto model = testing::tiny_model();
  const NamedVectors vectors{{"one", vector_of(100)}};
  CHECK_THROWS_AS(solve_doses(model, kPrompts, vectors, {"kl", 1e3}, absolute()), std::invalid_argument);
  CHECK_THROWS_AS(measure_doses(model, std::vector<std::vector<int64_t>>{{}}, vectors, absolute()),
                  std::invalid_argument);
  CHECK_THROWS_AS(measure_doses(model, kPrompts, {}, absolute()), std::invalid_argument);
  CHECK_THROWS_AS(strengths_of_doses(model, kPrompts, vectors, {"kl=x"}, absolute()), std::invalid_argument);
  auto none = absolute();
  none.factor = 0.1;
  CHECK_THROWS_AS(coherent_windows(model, kPrompts, vectors, none), Error);
}

TEST_CASE("a search finds the strength of doses that it is told", "[experiments][dose]") {
  using Doses = double (*)(double);
  const Doses square = [](double s) { return 5 * s * s; };
  const Doses hill = [](double s) { return s < 1 ? s * s : 1 / s; };  // rises, then falls
  const Doses jump = [](double s) { return s < 0.3 ? 0.01 * s : 2 + s; };
  struct Case {
    Doses doses;
    double target, start;
  };
  const std::vector<Case> cases{{square, 0.5, 0.0}, {square, 0.5, 0.1}, {square, 1e-4, 3.0},
                                {hill, 0.5, 0.0},   {hill, 0.5, 0.2},   {jump, 1.0, 0.1}};
  for (const auto& [dose, target, start] : cases) {
    DoseSearch search(target, start, /*scale=*/1.0, 0.01);
    while (!search.is_done()) {
      REQUIRE_FALSE(search.is_unreachable());
      REQUIRE(search.n_measured() < 60);
      std::map<double, double> doses;
      for (const double strength : search.next()) doses[strength] = dose(strength);
      search.take(doses);
    }
    if (dose == jump)
      CHECK(search.found() == Approx(0.3));
    else
      CHECK(dose(search.found()) == Approx(target).epsilon(0.01));
    CHECK(search.found() < 1);  // the smallest one
  }
  // Of a square the second measurement is right.
  DoseSearch search(0.5, 0.1, 1.0, 0.01);
  search.take({{0.1, square(0.1)}});
  CHECK(search.next().at(0) == Approx(std::sqrt(0.1)));
  // What no strength reaches ends.
  DoseSearch far(2.0, 0.1, 1.0, 0.01);
  for (int n = 0; n < 60 && !far.is_unreachable(); ++n) far.take({{far.next()[0], hill(far.next()[0])}});
  CHECK(far.is_unreachable());
  CHECK_THROWS_AS(DoseSearch(0.0, 0.1, 1.0, 0.01), std::invalid_argument);
  CHECK_THROWS_AS(DoseSearch(1.0, -0.1, 1.0, 0.01), std::invalid_argument);
  CHECK_THROWS_AS(DoseSearch(1.0, 0.1, NAN, 0.01), std::invalid_argument);
}
