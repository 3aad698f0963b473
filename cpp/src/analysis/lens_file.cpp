#include <set>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "introspect/analysis/lens.h"
#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"
#include "introspect/io/torch_zip.h"

#include "core/excerpt.h"
#include "core/json.h"

namespace introspect::analysis {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using Translators = std::map<int64_t, Translator>;

constexpr auto kFormat = "lens";
constexpr auto kParameters = "params.pt", kConfig = "config.json";
constexpr auto kModelHash = "model_hash", kNotes = "notes";  // beside the tuned-lens package's own fields

torch::Tensor wide(const torch::Tensor& x) {
  return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
}

int64_t layer_of(const std::string& text, const std::string& who) {
  return parse_key<IoError>(text, who + ": ", "a layer");
}

// ---- safetensors: "3.weight", "3.bias", and where they are from ----

void save_as_safetensors(const Lens& lens, const fs::path& path) {
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto& [layer, translator] : lens.translators()) {
    tensors.emplace_back(concat(layer, ".weight"), translator.W);
    if (translator.b.defined()) tensors.emplace_back(concat(layer, ".bias"), translator.b);
  }
  const auto& from = lens.origin();
  const Json origin = {{"model_name", from.model_name},     {"model_hash", from.model_hash},
                       {"unembed_hash", from.unembed_hash}, {"n_layers", from.n_layers},
                       {"d_model", from.d_model},           {"notes", from.notes}};
  io::save_safetensors(path, tensors,
                       {{"format", kFormat}, {"kind", to_string(lens.kind())}, {"origin", origin.dump()}});
}

Lens load_safetensors(const fs::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto who = "Lens::load: " + path.string();
  const auto value = [&](const std::string& key) {
    const auto found = file->metadata().find(key);
    return found == file->metadata().end() ? std::string() : found->second;
  };
  check<ConfigError>(value("format") == kFormat, who, ": the metadata 'format' must be '", kFormat, "', got ",
                     excerpt(value("format")));
  const auto json = parse_json<IoError>(value("origin"), who + ": where it is from");
  const JsonField<IoError> field(json, who + ": ");
  LensOrigin origin{field.at("model_name").text(),   field.at("model_hash").text(),
                    field.at("unembed_hash").text(), field.at("n_layers").integer(),
                    field.at("d_model").integer(),   field.at("notes").text()};
  Translators translators;
  for (const auto& name : file->names()) {
    const auto point = name.find('.');
    const bool is_bias = name.ends_with(".bias");
    check<IoError>(point != std::string::npos && (is_bias || name.ends_with(".weight")), who, ": the tensor ",
                   excerpt(name), " is none of a lens");
    auto& translator = translators[layer_of(name.substr(0, point), who)];
    (is_bias ? translator.b : translator.W) =
        file->read(name, file->dtype(name) == "F64" ? torch::kFloat64 : torch::kFloat32);
  }
  return {parse_lens_kind(value("kind")), std::move(origin), std::move(translators)};
}

// ---- the folder of the tuned-lens package: translator i reads what enters block i ----

void save_as_folder(const Lens& lens, const fs::path& folder) {
  const auto& from = lens.origin();
  check<ConfigError>(
      lens.kind() == LensKind::tuned && static_cast<int64_t>(lens.translators().size()) == from.n_layers,
      "Lens::save: ", folder.string(),
      ": a folder holds a tuned lens of all layers; a name in .safetensors holds every lens");
  const bool has_bias = lens.translators().begin()->second.b.defined();
  io::TorchValue::Dict parameters;
  for (const auto& [layer, translator] : lens.translators()) {
    check<ConfigError>(translator.b.defined() == has_bias, "Lens::save: ", folder.string(),
                       ": all translators of a folder have a bias, or none has");
    parameters.push_back({{concat(layer + 1, ".weight")}, {translator.W.to(torch::kFloat32)}});
    if (has_bias) parameters.push_back({{concat(layer + 1, ".bias")}, {translator.b.to(torch::kFloat32)}});
  }
  const Json config = {{"base_model_name_or_path", from.model_name},
                       {"d_model", from.d_model},
                       {"num_hidden_layers", from.n_layers},
                       {"bias", has_bias},
                       {"base_model_revision", nullptr},
                       {"unembed_hash", from.unembed_hash.empty() ? Json(nullptr) : Json(from.unembed_hash)},
                       {"lens_type", "linear_tuned_lens"},
                       {kModelHash, from.model_hash},
                       {kNotes, from.notes}};
  std::error_code problem;
  fs::create_directories(folder, problem);
  check<IoError>(!problem, "Lens::save: ", folder.string(), ": cannot be made: ", problem.message());
  io::save_torch_zip(folder / kParameters, io::TorchValue::dict(std::move(parameters)));
  io::write_atomically(folder / kConfig, config.dump(1) + "\n");
}

/// The tensor of a parameter, which files may hold in any floating dtype.
torch::Tensor tensor_of(const io::TorchValue& value, const std::string& who, const std::string& name) {
  const auto* const tensor = value.get_if<torch::Tensor>();
  check<IoError>(tensor && tensor->is_floating_point(), who, ": ", name, " must be a floating tensor");
  return wide(*tensor).contiguous();
}

Lens load_folder(const fs::path& folder) {
  const auto who = "Lens::load: " + (folder / kConfig).string();
  const auto json = parse_json<IoError>(io::read_text(folder / kConfig, size_t{1} << 20), who);
  const JsonField<IoError> field(json, who + ": ");
  if (field.has("lens_type"))
    check<ConfigError>(field.at("lens_type").text() == "linear_tuned_lens", who,
                       ": lens_type must be linear_tuned_lens, got ", excerpt(field.at("lens_type").text()));
  const auto text = [&](const std::string& key) {
    return field.has(key) && !field.at(key).is_null() ? field.at(key).text() : std::string();
  };
  LensOrigin origin{field.at("base_model_name_or_path").text(),
                    text(kModelHash),
                    text("unembed_hash"),
                    field.at("num_hidden_layers").integer(),
                    field.at("d_model").integer(),
                    text(kNotes).empty() ? "{}" : text(kNotes)};
  const auto file = "Lens::load: " + (folder / kParameters).string();
  const auto parameters = io::read_torch_zip(folder / kParameters);
  check<IoError>(parameters.dict() != nullptr, file, ": must hold a dictionary of tensors");
  Translators translators;
  for (const auto& [key, value] : *parameters.dict()) {
    const auto* const name = key.get_if<std::string>();
    const auto point = name ? name->find('.') : std::string::npos;
    check<IoError>(
        point != std::string::npos && (name->substr(point) == ".weight" || name->substr(point) == ".bias"),
        file, ": ", name ? excerpt(*name) : "a key", " is no parameter of a tuned lens");
    auto& translator = translators[layer_of(name->substr(0, point), file) - 1];
    (name->substr(point) == ".bias" ? translator.b : translator.W) = tensor_of(value, file, *name);
  }
  check<IoError>(static_cast<int64_t>(translators.size()) == origin.n_layers, file, ": must hold ",
                 origin.n_layers, " translators, has ", translators.size());
  return {LensKind::tuned, std::move(origin), std::move(translators)};
}

// ---- the .pt of a Jacobian lens: {J: {layer: [d, d]}, n_prompts, source_layers, d_model, metadata} ----

void save_as_pt(const Lens& lens, const fs::path& path) {
  check<ConfigError>(lens.kind() == LensKind::jacobian, "Lens::save: ", path.string(),
                     ": a .pt file holds a Jacobian lens, got a ", to_string(lens.kind()), " one");
  io::TorchValue::Dict J;
  io::TorchValue::List layers;
  for (const auto& [layer, translator] : lens.translators()) {
    J.push_back({{layer}, {translator.W.to(torch::kFloat16)}});
    layers.push_back({layer});
  }
  const auto& from = lens.origin();
  const auto notes = nlohmann::json::parse(from.notes, nullptr, /*allow_exceptions=*/false);
  const int64_t n_prompts =
      notes.is_object() && notes.contains("n_prompts") && notes["n_prompts"].is_number_integer()
          ? notes["n_prompts"].get<int64_t>()
          : 1;
  io::save_torch_zip(path,
                     io::TorchValue::dict(
                         {{{std::string("J")}, io::TorchValue::dict(std::move(J))},
                          {{std::string("n_prompts")}, {n_prompts}},
                          {{std::string("source_layers")}, io::TorchValue::list(std::move(layers))},
                          {{std::string("d_model")}, {from.d_model}},
                          {{std::string("metadata")},
                           io::TorchValue::dict({{{std::string("target_layer")}, {from.n_layers - 1}},
                                                 {{std::string("introspect_model_hash")}, {from.model_hash}},
                                                 {{std::string("introspect_notes")}, {from.notes}}})}}));
}

Lens load_pt(const fs::path& path) {
  const auto who = "Lens::load: " + path.string();
  const auto file = io::read_torch_zip(path);
  const auto* const J = file.find("J");
  const auto* const width = file.find("d_model");
  check<ConfigError>(J && J->dict() && width && width->get_if<int64_t>(), who,
                     ": must hold J, a matrix for each layer, and d_model, as a Jacobian lens does");
  Translators translators;
  int64_t last = -1;
  for (const auto& [key, value] : *J->dict()) {
    const auto* const layer = key.get_if<int64_t>();
    check<IoError>(layer && *layer >= 0 && *layer < (1 << 20), who, ": keys of J must be layers");
    translators[*layer] = {tensor_of(value, who, concat("J of layer ", *layer)), {}};
    last = std::max(last, *layer);
  }
  LensOrigin origin;
  origin.d_model = *width->get_if<int64_t>();
  origin.n_layers = last + 2;
  Json notes = Json::object();
  if (const auto* const n = file.find("n_prompts"); n && n->get_if<int64_t>())
    notes["n_prompts"] = *n->get_if<int64_t>();
  origin.notes = notes.dump();
  if (const auto* const metadata = file.find("metadata")) {
    const auto text = [&](const std::string& key, std::string& to) {
      const auto* const found = metadata->find(key);
      if (found && found->get_if<std::string>()) to = *found->get_if<std::string>();
    };
    text("model_name", origin.model_name);
    text("introspect_model_hash", origin.model_hash);
    text("introspect_notes", origin.notes);
    const auto* const target = metadata->find("target_layer");
    if (target && target->get_if<int64_t>()) origin.n_layers = *target->get_if<int64_t>() + 1;
  }
  return {LensKind::jacobian, std::move(origin), std::move(translators)};
}

}  // namespace

void Lens::save(const fs::path& path) const {
  if (path.extension() == ".safetensors") return save_as_safetensors(*this, path);
  if (path.extension() == ".pt") return save_as_pt(*this, path);
  save_as_folder(*this, path);
}

Lens Lens::load(const fs::path& path) {
  try {
    if (fs::is_directory(path)) return load_folder(path);
    if (path.extension() == ".pt") return load_pt(path);
    check<ConfigError>(path.extension() == ".safetensors" || !fs::exists(path), "Lens::load: ", path.string(),
                       ": a lens is a folder with params.pt, a .pt or a .safetensors file");
    return load_safetensors(path);
  } catch (const std::logic_error& error) {  // translators that no lens can have: the file's fault
    throw IoError(concat("Lens::load: ", path.string(), ": ", error.what()));
  } catch (const ShapeError& error) {
    throw IoError(concat("Lens::load: ", path.string(), ": ", error.what()));
  }
}

}  // namespace introspect::analysis
