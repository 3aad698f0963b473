#include "introspect/analysis/lens.h"

#include <filesystem>

#include <catch2/catch.hpp>

#include "introspect/core/error.h"

#include "tiny_model.h"

using namespace introspect;
using namespace introspect::testing;
using analysis::Lens;

namespace {

Lens random_lens(const models::Model& model, analysis::LensKind kind) {
  const int64_t D = model.cfg().d_model, last = model.cfg().n_layers - 1;
  const bool tuned = kind == analysis::LensKind::tuned;
  std::map<int64_t, analysis::Translator> translators;
  for (int64_t layer = tuned ? -1 : 0; layer < last; ++layer)
    translators[layer] = {random_tensor({D, D}, 2 * layer + 10),
                          tuned ? random_tensor({D}, 2 * layer + 11) : torch::Tensor{}};
  auto origin = Lens::logit(model).origin();
  return {kind, origin, std::move(translators)};
}

}  // namespace

TEST_CASE("a lens reads what its formula says", "[lens]") {
  const auto model = tiny_model();
  const auto resid_LD = random_tensor({2, model->cfg().d_model}, 5);
  const auto tuned = random_lens(*model, analysis::LensKind::tuned);
  const auto& one = tuned.translators().at(1);
  const auto h = resid_LD[0];
  const auto expected =
      at::stack({h + one.W.matmul(h) + one.b, resid_LD[1]});  // the last block's is the model's own
  CHECK(at::allclose(tuned.logits(*model, resid_LD, {1, 3}), model->readout(expected), 0, kFloor));
  const auto jacobian = random_lens(*model, analysis::LensKind::jacobian);
  const auto moved = jacobian.translators().at(1).W.matmul(h);
  CHECK(at::allclose(jacobian.logits(*model, resid_LD.slice(0, 0, 1), {1})[0], model->readout(moved), 0,
                     kFloor));
}

TEST_CASE("a lens comes back from its files", "[lens]") {
  const auto model = tiny_model();
  const auto folder = std::filesystem::temp_directory_path() / "introspect_lens";
  std::filesystem::create_directories(folder);
  const auto tuned = random_lens(*model, analysis::LensKind::tuned);
  for (const char* name :
       {"tuned", "tuned.safetensors"}) {  // the package's folder, in float32, and our own file
    tuned.save(folder / name);
    const auto back = Lens::load(folder / name);
    CHECK(back.kind() == analysis::LensKind::tuned);
    CHECK(back.layers() == tuned.layers());
    const auto& [W, b] = tuned.translators().at(-1);
    const auto dtype = back.translators().at(-1).W.scalar_type();
    CHECK(dtype == (name == std::string("tuned") ? torch::kFloat32 : torch::kFloat64));
    CHECK(back.translators().at(-1).W.equal(W.to(dtype)));
    CHECK(back.translators().at(-1).b.equal(b.to(dtype)));
    CHECK((back.hash() == tuned.hash()) == (dtype == torch::kFloat64));
    CHECK_NOTHROW(back.check_model(*model));
    CHECK_THROWS_AS(back.check_model(*tiny_model(1)), ConfigError);                     // other weights
    CHECK_THROWS_AS(back.check_model(*tiny_model(0, torch::kFloat64, 3)), ShapeError);  // fewer layers
  }
  const auto jacobian = random_lens(*model, analysis::LensKind::jacobian);
  jacobian.save(folder / "jacobian.pt");
  const auto back = Lens::load(folder / "jacobian.pt");  // float16, as published
  CHECK(back.layers() == jacobian.layers());
  const auto& W = jacobian.translators().at(1).W;
  CHECK(back.translators().at(1).W.to(torch::kFloat64).equal(W.to(torch::kFloat16).to(torch::kFloat64)));
  std::filesystem::remove_all(folder);
}
