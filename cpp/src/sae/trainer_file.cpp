#include <nlohmann/json.hpp>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

#include "core/excerpt.h"
#include "core/json.h"
#include "sae/training/state.h"

namespace introspect::sae {

using training::State;

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Field = JsonField<IoError>;
using Tensors = std::vector<std::pair<std::string, torch::Tensor>>;

constexpr auto kFile = "trainer.safetensors", kFormat = "introspect.trainer.1";

Json sites_json(const std::vector<DictionarySite>& sites) {
  auto out = Json::array();
  for (const auto& site : sites)
    out.push_back({{"hook_name", site.hook_name}, {"width", site.width}, {"model", site.model}});
  return out;
}

std::vector<DictionarySite> sites_of(const Field& field) {
  std::vector<DictionarySite> out(field.list());
  for (size_t i = 0; i < out.size(); ++i)
    out[i] = {field.at(i).at("hook_name").text(), field.at(i).at("width").integer(),
              field.at(i).at("model").integer()};
  return out;
}

Json origin_json(const DictionaryOrigin& from) {
  Json out = {{"inputs", sites_json(from.inputs)},
              {"outputs", sites_json(from.outputs)},
              {"model_name", from.model_name},
              {"model_hash", from.model_hash},
              {"release", from.release},
              {"sae_id", from.sae_id},
              {"centers_writing_weights", from.centers_writing_weights},
              {"masks_bos", from.masks_bos},
              {"notes", from.notes}};
  if (from.context_size) out["context_size"] = *from.context_size;
  if (from.prepend_bos) out["prepend_bos"] = *from.prepend_bos;
  return out;
}

DictionaryOrigin origin_of(const Field& field) {
  DictionaryOrigin out;
  out.inputs = sites_of(field.at("inputs"));
  out.outputs = sites_of(field.at("outputs"));
  out.model_name = field.at("model_name").text();
  out.model_hash = field.at("model_hash").text();
  out.release = field.at("release").text();
  out.sae_id = field.at("sae_id").text();
  out.centers_writing_weights = field.at("centers_writing_weights").boolean();
  out.masks_bos = field.at("masks_bos").boolean();
  out.notes = field.at("notes").text();
  if (field.has("context_size")) out.context_size = field.at("context_size").integer();
  if (field.has("prepend_bos")) out.prepend_bos = field.at("prepend_bos").boolean();
  return out;
}

Json state_json(const State& s) {
  auto queue = Json::array();
  for (const auto& [now, next] : s.annealing.queue) queue.push_back({now, next});
  return {{"d_in", s.d_in},
          {"d_out", s.d_out},
          {"has_given_weights", s.has_given_weights},
          {"is_started", s.is_started},
          {"steps", s.steps},
          {"rows", s.rows},
          {"window_steps", s.window_steps},
          {"window_rows", s.window_rows},
          {"window_rows_before", s.window_rows_before},
          {"threshold", s.threshold},
          {"length_in", s.length_in},
          {"length_out", s.length_out},
          {"measured", s.measured},
          {"annealing",
           {{"p", s.annealing.p},
            {"next_p", s.annealing.next_p},
            {"updates", s.annealing.updates},
            {"factor", s.annealing.factor},
            {"queue", queue}}}};
}

void read_state(const Field& field, State& s) {
  s.d_in = field.at("d_in").integer();
  s.d_out = field.at("d_out").integer();
  s.has_given_weights = field.at("has_given_weights").boolean();
  s.is_started = field.at("is_started").boolean();
  s.steps = field.at("steps").integer();
  s.rows = field.at("rows").integer();
  s.window_steps = field.at("window_steps").integer();
  s.window_rows = field.at("window_rows").integer();
  s.window_rows_before = field.at("window_rows_before").integer();
  s.threshold = field.at("threshold").number();
  s.length_in = field.at("length_in").numbers();
  s.length_out = field.at("length_out").numbers();
  s.measured = field.at("measured").integer();
  const auto annealing = field.at("annealing"), queue = annealing.at("queue");
  s.annealing.p = annealing.at("p").number();
  s.annealing.next_p = annealing.at("next_p").number();
  s.annealing.updates = annealing.at("updates").integer();
  s.annealing.factor = annealing.at("factor").number();
  for (size_t i = 0; i < queue.list(); ++i)
    s.annealing.queue.emplace_back(queue.at(i).at(0).number(), queue.at(i).at(1).number());
}

/// The tensors of a state that are not weights or moments.
template <typename S, typename Visit>
void for_each_counter(S& s, const Visit& visit) {
  visit("since_fired", s.since_fired);
  visit("fired", s.fired);
  visit("fired_before", s.fired_before);
  visit("scale_in", s.scale_in);
  visit("scale_out", s.scale_out);
}

}  // namespace

void Trainer::save(const fs::path& folder) const {
  const auto& s = *state_;
  Tensors tensors;
  for (const auto& [name, tensor] : s.w.operands()) tensors.emplace_back(name, tensor);
  for (const auto& [name, tensor] : s.first.operands()) tensors.emplace_back("first." + name, tensor);
  for (const auto& [name, tensor] : s.second.operands()) tensors.emplace_back("second." + name, tensor);
  for_each_counter(s, [&](const char* name, const torch::Tensor& tensor) {
    if (tensor.defined()) tensors.emplace_back(name, tensor.to(torch::kFloat64));
  });
  std::error_code error;
  fs::create_directories(folder, error);
  check<IoError>(!error, "Trainer::save: ", folder.string(), ": ", error.message());
  io::save_safetensors(folder / kFile, tensors,
                       {{"format", kFormat},
                        {"options", s.options.to_json()},
                        {"origin", origin_json(s.origin).dump()},
                        {"state", state_json(s).dump()}});
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
  s->origin = origin_of(Field(origin, who + ": origin: "));
  read_state(Field(json, who + ": state: "), *s);
  s->options.check(s->d_in, s->d_out);

  const auto read = [&](const std::string& name, torch::ScalarType dtype, at::IntArrayRef shape) {
    check<IoError>(file->has(name), who, ": there is no tensor ", name);
    auto tensor = file->read(name, dtype).to(device);
    check<IoError>(tensor.sizes() == shape, who, ": ", name, " must be ", shape, ", got ", tensor.sizes());
    return tensor;
  };
  // Those that such a trainer has, with their shapes.
  const auto expected = training::first_weights(s->options, s->d_in, s->d_out, torch::kCPU).operands();
  const auto all = [&](const std::string& prefix) {
    hooks::Operands::Tensors out;
    for (const auto& [name, tensor] : expected)
      out[name] = read(prefix + name, tensor.scalar_type(), tensor.sizes());
    return DictionaryWeights::from_operands(out);
  };
  s->w = all("");
  s->first = all("first.");
  s->second = all("second.");
  const auto F = s->options.d_sae;
  s->since_fired = read("since_fired", torch::kFloat64, {F}).to(torch::kInt64);
  s->fired = read("fired", torch::kFloat64, {F});
  s->fired_before = read("fired_before", torch::kFloat64, {F});
  if (s->is_started && s->options.input_norm == InputNorm::scale) {
    s->scale_in = read("scale_in", torch::kFloat64, {s->d_in}).to(s->like());
    s->scale_out = read("scale_out", torch::kFloat64, {s->d_out}).to(s->like());
  }
  return Trainer(std::move(s));
}

}  // namespace introspect::sae
