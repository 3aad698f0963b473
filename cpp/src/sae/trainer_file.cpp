#include <memory>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/sae/trainer.h"

#include "sae/training/state_file.h"

namespace introspect::sae {

using training::State;

namespace {

namespace fs = std::filesystem;

constexpr auto kFile = "trainer.safetensors", kFormat = "introspect.trainer.1";

}  // namespace

void Trainer::save(const fs::path& folder) const {
  const auto& s = *state_;
  training::Tensors tensors;
  training::add_tensors(s, "", tensors);
  training::save_trainer(folder / kFile, "Trainer::save", kFormat, tensors, s.options, s.origin,
                         training::state_json(s));
}

Trainer Trainer::load(const fs::path& folder, torch::Device device) {
  const training::TrainerFile file(folder / kFile, "Trainer::load", kFormat);
  auto s = std::make_unique<State>();
  s->options = file.options();
  s->origin = file.origin();
  training::read_state(file.state(), *s);
  s->options.check(s->d_in, s->d_out);
  // Those that such a trainer has, with their shapes.
  const auto expected = training::first_weights(s->options, s->d_in, s->d_out, torch::kCPU);
  training::read_tensors(file.tensors(device), "", expected, *s);
  return Trainer(std::move(s));
}

}  // namespace introspect::sae
