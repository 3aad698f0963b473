#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/hooks/intervention_json.h"

#include "test_operators.h"

using namespace introspect;
using Catch::Matchers::Contains;
using hooks::Intervention;
using hooks::Point;
using hooks::Site;
using introspect::testing::affine_map;
using introspect::testing::distance;
using introspect::testing::kFloor;
using introspect::testing::random_tensor;
using introspect::testing::tiny_model;
using introspect::testing::transcoder;

namespace {

torch::Tensor tokens() {
  return torch::tensor({3, 4, 5, 6, 7, 8}, torch::kLong).unsqueeze(0);
}

torch::Tensor logits(const models::Model& model, const hooks::HookRegistry& registry) {
  models::ForwardOptions options;
  options.hooks = &registry;
  return model.forward(tokens(), options);
}

/// The transcoder written by hand: callbacks that keep what one point shows and add to another.
void add_by_hand(hooks::HookRegistry& registry, const Intervention& i,
                 std::map<int64_t, torch::Tensor>& kept) {
  for (const auto& [layer, operands] : i.values) {
    const auto from = hooks::source_site(i, layer);
    registry.observe(hooks::hook_name(from),
                     [&kept, layer = layer](const torch::Tensor& x, Site) { kept[layer] = x.clone(); });
    registry.add(hooks::hook_name({i.point, layer}),
                 [&kept, &i, layer = layer](const torch::Tensor& x, Site) -> std::optional<torch::Tensor> {
                   const auto& of = i.values.at(layer);
                   const auto features = at::relu(kept.at(layer).matmul(of.get("W_enc").t()));
                   return x + i.strength * features.matmul(of.get("W_dec").t());
                 });
  }
}

}  // namespace

TEST_CASE("an operator with a source is what callbacks at both points do", "[hooks]") {
  const auto model = tiny_model(0);
  const std::vector<Intervention> all = {
      transcoder(Point::kMlpIn, {}, Point::kMlpOut, {1, 2}),                  // of its own layer
      transcoder(Point::kMlpIn, 1, Point::kMlpOut, {1, 2, 3}),                // of layer 1, there and above
      transcoder(Point::kResidPost, 0, Point::kResidPre, {2}),                // between blocks
      transcoder(Point::kEmbed, {}, Point::kResidPost, {3}),                  // from before the first block
      transcoder(Point::kLn2Normalized, 0, Point::kLnFinalNormalized, {-1}),  // to after the last one
  };
  for (const auto& i : all) {
    auto registry = model->make_hooks(), by_hand = model->make_hooks();
    registry.add(i);
    REQUIRE(registry.reads_sources());
    std::map<int64_t, torch::Tensor> kept;
    add_by_hand(by_hand, i, kept);
    const auto changed = logits(*model, registry);
    CHECK(distance(changed, logits(*model, by_hand)) < kFloor);
    CHECK(distance(changed, model->forward(tokens())) > 1e-3);
  }
}

TEST_CASE("a linear map with a bias changes its heads' positions and no others", "[hooks]") {
  const auto model = tiny_model(0);
  auto i = affine_map(Point::kResidMid, 1, /*strength=*/1.0);
  i.positions = {2, 4};
  const auto x = random_tensor({1, 6, 16}, 3);
  const auto y = hooks::apply(i, 1, x, 0);
  const auto mapped = x.matmul(i.values.at(1).get("W").t()) + i.values.at(1).get("b");
  for (int64_t t = 0; t < 6; ++t)
    CHECK(distance(y.select(1, t), (t == 2 || t == 4 ? mapped : x).select(1, t)) < kFloor);
}

TEST_CASE("chunks through a cache and rows of a batch read their own source", "[hooks]") {
  const auto model = tiny_model(0);
  auto i = transcoder(Point::kMlpIn, 1, Point::kMlpOut, {2});
  i.rows = {1};
  auto registry = model->make_hooks();
  registry.add(i);
  models::ForwardOptions options;
  options.hooks = &registry;
  const auto both = model->forward(tokens().expand({2, 6}), options);
  i.rows = {};
  auto alone = model->make_hooks();
  alone.add(i);
  CHECK(distance(both.narrow(0, 0, 1), model->forward(tokens())) < kFloor);
  CHECK(distance(both.narrow(0, 1, 1), logits(*model, alone)) < kFloor);

  auto cache = model->make_cache(1);
  options.hooks = &alone;
  options.cache = &cache;
  const auto first = model->forward(tokens().narrow(1, 0, 4), options);
  const auto second = model->forward(tokens().narrow(1, 4, 2), options);
  CHECK(distance(at::cat({first, second}, 1), logits(*model, alone)) < kFloor);
}

TEST_CASE("gradients flow to the source and to every operand", "[hooks]") {
  const at::AutoGradMode with_gradients(true);
  const auto model = tiny_model(0);
  auto i = transcoder(Point::kMlpIn, 0, Point::kMlpOut, {2});
  const auto W_dec = i.values.at(2).get("W_dec").clone().requires_grad_();
  const auto loss = [&](const torch::Tensor& W) {
    auto changed = i;
    changed.values[2] = hooks::Operands::Tensors{{"W_enc", i.values.at(2).get("W_enc")}, {"W_dec", W}};
    auto registry = model->make_hooks();
    registry.add(changed);
    return logits(*model, registry).square().mean();
  };
  loss(W_dec).backward();
  const auto gradient = W_dec.grad();
  // By central differences along one direction: of logits in float32, so that the step must be wide.
  const auto direction = random_tensor({16, 5}, 31).to(W_dec.scalar_type());
  constexpr double step = 1e-3;
  const at::NoGradGuard no_grad;
  const auto up = loss(W_dec + step * direction), down = loss(W_dec - step * direction);
  const auto expected = ((up - down) / (2 * step)).item<double>();
  CHECK((gradient * direction).sum().item<double>() == Approx(expected).epsilon(1e-3));
}

TEST_CASE("an intervention with operands by name and a source survives its JSON", "[hooks]") {
  auto i = transcoder(Point::kMlpIn, 1, Point::kMlpOut, {1, 3});
  hooks::TensorTable table;
  const auto json = hooks::to_json(i, table);
  const auto read = hooks::from_json(json, table);
  REQUIRE(read.source == Point::kMlpIn);
  REQUIRE(read.source_layer == 1);
  for (const auto& [layer, operands] : i.values)
    for (const auto& [name, tensor] : operands) CHECK(at::equal(read.values.at(layer).get(name), tensor));
  // One encoder for both layers stands in the table once.
  CHECK(table.size() == 3);
  hooks::TensorTable again;
  CHECK(hooks::to_json(read, again) == json);
}

TEST_CASE("a source that cannot be read is refused before anything runs", "[hooks]") {
  const auto model = tiny_model(0);
  auto registry = model->make_hooks();
  const auto add = [&](const Intervention& i) { registry.add(i); };
  REQUIRE_THROWS_WITH(add(transcoder(Point::kMlpOut, {}, Point::kMlpIn, {1})), Contains("must come before"));
  REQUIRE_THROWS_WITH(add(transcoder(Point::kMlpIn, 2, Point::kMlpOut, {1})), Contains("must come before"));
  REQUIRE_THROWS_AS(add(transcoder(Point::kMlpIn, 9, Point::kMlpOut, {1})), HookError);
  REQUIRE_THROWS_WITH(add(transcoder(Point::kPattern, {}, Point::kMlpOut, {1})), Contains("patterns"));
  auto without = transcoder(Point::kMlpIn, {}, Point::kMlpOut, {1});
  without.source.reset();
  REQUIRE_THROWS_WITH(add(without), Contains("needs a source"));
  Intervention reads_none{.values = {{1, at::ones({16})}}};
  reads_none.source = Point::kMlpIn;
  REQUIRE_THROWS_WITH(add(reads_none), Contains("reads no source"));
  auto half = affine_map(Point::kResidMid, 1);
  half.values[1] = hooks::Operands::Tensors{{"b", at::ones({16})}};
  REQUIRE_THROWS_WITH(add(half), Contains("needs an operand W"));
  half.values[1] = hooks::Operands::Tensors{{"W", at::ones({16, 15})}};
  REQUIRE_THROWS_AS(add(half), ShapeError);
  half.values[1] = hooks::Operands::Tensors{{"W", at::ones({16, 16})}, {"c", at::ones({16})}};
  REQUIRE_THROWS_WITH(add(half), Contains("takes no operand c"));
  half.values[1] = hooks::Operands::Tensors{{"W", at::full({16, 16}, NAN)}};
  REQUIRE_THROWS_WITH(add(half), Contains("operand W of layer 1 holds NaN"));
  REQUIRE(registry.empty());

  // A pass that begins above the source has not run it.
  registry.add(transcoder(Point::kMlpIn, 0, Point::kMlpOut, {2}));
  models::ForwardOptions options;
  options.hooks = &registry;
  options.start_at_layer = 1;
  const auto resid = at::zeros({1, 2, 16}, torch::dtype(model->dtype()));
  REQUIRE_THROWS_WITH(model->forward(resid, options), Contains("blocks.0.hook_mlp_in"));
}
