#include "sae/training/state_file.h"

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "core/json.h"

namespace introspect::sae::training {

namespace {

using Json = nlohmann::ordered_json;
using Field = JsonField<IoError>;

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

/// The tensors of a state that are not weights or moments.
template <typename S, typename Visit>
void for_each_counter(S& s, const Visit& visit) {
  visit("since_fired", s.since_fired);
  visit("fired", s.fired);
  visit("fired_before", s.fired_before);
  visit("scale_in", s.scale_in);
  visit("scale_out", s.scale_out);
  visit("whitening_sum", s.whitening_of.sum_D);
  visit("whitening_outer", s.whitening_of.outer_DD);
  visit("whitening_mean", s.whitening.mean_D);
  visit("whitening_matrix", s.whitening.matrix_DD);
  visit("whitening_inverse", s.whitening.inverse_DD);
}

}  // namespace

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
          {"whitening_rows", s.whitening_of.rows},
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
  if (field.has("whitening_rows")) s.whitening_of.rows = field.at("whitening_rows").integer();
  const auto annealing = field.at("annealing"), queue = annealing.at("queue");
  s.annealing.p = annealing.at("p").number();
  s.annealing.next_p = annealing.at("next_p").number();
  s.annealing.updates = annealing.at("updates").integer();
  s.annealing.factor = annealing.at("factor").number();
  for (size_t i = 0; i < queue.list(); ++i)
    s.annealing.queue.emplace_back(queue.at(i).at(0).number(), queue.at(i).at(1).number());
}

void add_tensors(const State& s, const std::string& prefix, Tensors& to) {
  for (const auto& [name, tensor] : s.w.operands()) to.emplace_back(prefix + name, tensor);
  for (const auto& [name, tensor] : s.first.operands()) to.emplace_back(prefix + "first." + name, tensor);
  for (const auto& [name, tensor] : s.second.operands()) to.emplace_back(prefix + "second." + name, tensor);
  for_each_counter(s, [&](const char* name, const torch::Tensor& tensor) {
    if (tensor.defined()) to.emplace_back(prefix + name, tensor.to(torch::kFloat64));
  });
}

void save_trainer(const std::filesystem::path& path, const std::string& who, const std::string& format,
                  const Tensors& tensors, const TrainerOptions& options, const DictionaryOrigin& origin,
                  const Json& state) {
  const auto folder = path.parent_path();
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check<IoError>(!error, who, ": ", folder.string(), ": ", error.message());
  io::save_safetensors(path, tensors,
                       {{"format", format},
                        {"options", options.to_json()},
                        {"origin", origin_json(origin).dump()},
                        {"state", state.dump()}});
}

TrainerFile::TrainerFile(const std::filesystem::path& path, std::string who, const std::string& format)
    : who_(concat(who, ": ", path.string())), file_(io::SafetensorsFile::open(path)) {
  check<IoError>(metadata("format") == format, who_, ": the metadata 'format' must be ", format, ", got ",
                 excerpt(metadata("format")));
  state_ = parse_json<IoError>(metadata("state"), who_ + ": state");
}

TrainerOptions TrainerFile::options() const {
  return TrainerOptions::from_json(metadata("options"));
}

DictionaryOrigin TrainerFile::origin() const {
  const auto json = parse_json<IoError>(metadata("origin"), who_ + ": origin");
  return origin_of(Field(json, who_ + ": origin: "));
}

Field TrainerFile::state() const {
  return Field(state_, who_ + ": state: ");
}

const std::string& TrainerFile::metadata(const std::string& key) const {
  static const std::string none;
  const auto found = file_->metadata().find(key);
  return found == file_->metadata().end() ? none : found->second;
}

torch::Tensor TensorReader::operator()(const std::string& name, torch::ScalarType dtype,
                                       at::IntArrayRef shape) const {
  check<IoError>(file.has(name), who, ": there is no tensor ", name);
  auto tensor = file.read(name, dtype).to(device);
  check<IoError>(tensor.sizes() == shape, who, ": ", name, " must be ", shape, ", got ", tensor.sizes());
  return tensor;
}

void read_tensors(const TensorReader& read, const std::string& prefix, const DictionaryWeights& expected,
                  State& s) {
  const auto all = [&](const std::string& kind) {
    hooks::Operands::Tensors out;
    for (const auto& [name, tensor] : expected.operands())
      out[name] = read(prefix + kind + name, tensor.scalar_type(), tensor.sizes());
    return DictionaryWeights::from_operands(out);
  };
  s.w = all("");
  s.first = all("first.");
  s.second = all("second.");
  const auto F = s.options.d_sae, D = s.d_in;
  const auto counter = [&](const char* name, at::IntArrayRef shape) {
    return read(prefix + name, torch::kFloat64, shape);
  };
  s.since_fired = counter("since_fired", {F}).to(torch::kInt64);
  s.fired = counter("fired", {F});
  s.fired_before = counter("fired_before", {F});
  if (s.is_started && s.options.input_norm == InputNorm::scale) {
    s.scale_in = counter("scale_in", {D}).to(s.like());
    s.scale_out = counter("scale_out", {s.d_out}).to(s.like());
  }
  if (s.whitening_of.rows > 0) {
    s.whitening_of.sum_D = counter("whitening_sum", {D});
    s.whitening_of.outer_DD = counter("whitening_outer", {D, D});
  }
  if (s.is_started && s.options.input_norm == InputNorm::whitening)
    s.whitening = {counter("whitening_mean", {D}), counter("whitening_matrix", {D, D}),
                   counter("whitening_inverse", {D, D})};
}

}  // namespace introspect::sae::training
