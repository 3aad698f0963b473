#include <nlohmann/json.hpp>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/training/state_file.h"

namespace introspect::sae {

using training::State;

namespace {

namespace fs = std::filesystem;
using Field = JsonField<IoError>;

constexpr auto kFile = "trainer.safetensors", kFormat = "introspect.trainer.1";

}  // namespace

void Trainer::save(const fs::path& folder) const {
  const auto& s = *state_;
  training::Tensors tensors;
  training::add_tensors(s, "", tensors);
  std::error_code error;
  fs::create_directories(folder, error);
  check<IoError>(!error, "Trainer::save: ", folder.string(), ": ", error.message());
  io::save_safetensors(folder / kFile, tensors,
                       {{"format", kFormat},
                        {"options", s.options.to_json()},
                        {"origin", training::origin_json(s.origin).dump()},
                        {"state", training::state_json(s).dump()}});
}

Trainer Trainer::load(const fs::path& folder, torch::Device device) {
  const auto path = folder / kFile;
  const auto who = "Trainer::load: " + path.string();
  const auto file = io::SafetensorsFile::open(path);
  const auto text = [&](const std::string& key) {
    const auto found = file->metadata().find(key);
    return found == file->metadata().end() ? std::string() : found->second;
  };
  check<IoError>(text("format") == kFormat, who, ": the metadata 'format' must be ", kFormat, ", got ",
                 excerpt(text("format")));
  const auto parsed = [&](const char* key) { return parse_json<IoError>(text(key), who + ": " + key); };
  const auto json = parsed("state"), origin = parsed("origin");
  auto s = std::make_unique<State>();
  s->options = TrainerOptions::from_json(text("options"));
  s->origin = training::origin_of(Field(origin, who + ": origin: "));
  training::read_state(Field(json, who + ": state: "), *s);
  s->options.check(s->d_in, s->d_out);
  // Those that such a trainer has, with their shapes.
  const auto expected = training::first_weights(s->options, s->d_in, s->d_out, torch::kCPU);
  training::read_tensors({*file, who, device}, "", expected, *s);
  return Trainer(std::move(s));
}

}  // namespace introspect::sae
