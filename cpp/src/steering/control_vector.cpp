#include "introspect/steering/control_vector.h"

#include <charconv>
#include <cmath>
#include <stdexcept>
#include <utility>

#include <ATen/CPUGeneratorImpl.h>
#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "core/dense.h"
#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/io/gguf.h"
#include "introspect/io/gguf_writer.h"
#include "introspect/io/safetensors.h"

namespace introspect::steering {
namespace {

constexpr auto kArchitecture = "controlvector";
constexpr auto kOriginKey = "introspect.origin";  // ours; other readers pass over keys they do not know
const std::string kPrefix = "direction.";

std::string tensor_name(int64_t layer) {
  return kPrefix + std::to_string(layer);
}

/// Every direction.{layer} of a file, checked to be one-dimensional before anything is read.
ControlVector::Directions read_directions(const io::TensorSource& source, const std::filesystem::path& path) {
  ControlVector::Directions directions;
  for (const auto& name : source.names()) {
    int64_t layer = -1;
    const auto* const first = name.data() + std::min(name.size(), kPrefix.size());
    const auto* const last = name.data() + name.size();
    const auto [end, error] = std::from_chars(first, last, layer);
    check<IoError>(name.rfind(kPrefix, 0) == 0 && error == std::errc() && end == last && layer >= 0,
                   "ControlVector: ", path.string(), ": tensors must be named direction.{layer}, got '", name,
                   "'");
    check<IoError>(source.shape(name).size() == 1, "ControlVector: ", path.string(), ": ", name,
                   " must be one-dimensional, got ", source.shape(name).size(), " dimensions");
    directions.emplace(layer, source.read(name, torch::kFloat32));
  }
  check<IoError>(!directions.empty(), "ControlVector: ", path.string(),
                 ": the file must hold a direction, got none");
  return directions;
}

std::string origin_json(const VectorOrigin& origin) {
  auto spectrum = nlohmann::json::object();
  for (const auto& [layer, shares] : origin.spectrum) spectrum[std::to_string(layer)] = shares;
  auto diagnostics = nlohmann::json::object();
  for (const auto& [layer, one] : origin.diagnostics) {
    auto& entry = diagnostics[std::to_string(layer)];
    entry = {{"explained_variance", one.explained_variance}, {"sign_agreement", one.sign_agreement}};
    if (one.accuracy) entry["accuracy"] = *one.accuracy;
    if (one.auc) entry["auc"] = *one.auc;
  }
  return nlohmann::json{{"model_name", origin.model_name},
                        {"model_hash", origin.model_hash},
                        {"method", origin.method},
                        {"n_pairs", origin.n_pairs},
                        {"spectrum", spectrum},
                        {"folds", origin.folds},
                        {"diagnostics", diagnostics},
                        {"point", origin.point},
                        {"read_position", origin.read_position},
                        {"last_layer_after_norm", origin.last_layer_after_norm},
                        {"concept", origin.concept_name}}
      .dump();
}

VectorOrigin parse_origin(const std::string& text, const std::filesystem::path& path) {
  const auto who = concat("ControlVector: ", path.string(), ": the vector's origin");
  const auto json = parse_json<IoError>(text, who);
  const JsonField<IoError> field(json, who + ": ");
  const auto for_each_layer = [&](const char* key, const auto& visit) {
    field.at(key).for_each_field([&](const std::string& layer, const auto& value) {
      visit(parse_key<IoError>(layer, who, concat(": a layer of ", key)), value);
    });
  };
  VectorOrigin origin;
  origin.model_name = field.at("model_name").text();
  origin.model_hash = field.at("model_hash").text();
  origin.method = field.at("method").text();
  origin.n_pairs = field.at("n_pairs").integer();
  for_each_layer("spectrum", [&](int64_t layer, const auto& shares) {
    origin.spectrum.emplace(layer, shares.numbers());
  });
  if (!field.has("diagnostics")) return origin;  // a file of a version without them
  origin.folds = field.at("folds").integer();
  for_each_layer("diagnostics", [&](int64_t layer, const auto& entry) {
    auto& one = origin.diagnostics[layer];
    one.explained_variance = entry.at("explained_variance").number();
    one.sign_agreement = entry.at("sign_agreement").number();
    if (entry.has("accuracy")) one.accuracy = entry.at("accuracy").number();
    if (entry.has("auc")) one.auc = entry.at("auc").number();
  });
  if (!field.has("point")) return origin;  // likewise
  origin.point = field.at("point").text();
  origin.read_position = field.at("read_position").text();
  origin.last_layer_after_norm = field.at("last_layer_after_norm").boolean();
  if (field.has("concept")) origin.concept_name = field.at("concept").text();
  return origin;
}

/// [d, k] with orthonormal columns, Haar distributed (Mezzadri 2007, arXiv:math-ph/0609050: QR of a Gaussian
/// matrix, with the signs of R's diagonal made positive).
torch::Tensor random_frame(int64_t d, int64_t k, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto [q, r] = torch::linalg_qr(torch::randn({d, k}, generator, torch::kFloat64));
  return q * torch::where(r.diagonal() < 0, -1.0, 1.0);
}

}  // namespace

ControlVector::ControlVector(std::string model_type, const Directions& directions, VectorOrigin origin)
    : model_type_(std::move(model_type)), origin_(std::move(origin)) {
  check<ConfigError>(!directions.empty(), "ControlVector: at least one direction is needed, got none");
  for (const auto& [layer, direction] : directions) {
    check<std::out_of_range>(layer >= 0, "ControlVector: layers must be 0 or more, got ", layer);
    const auto& first = directions.begin()->second;
    check_dense<ShapeError>(direction, "ControlVector: direction ", layer);
    check<ShapeError>(direction.defined() && direction.dim() == 1 && direction.numel() > 0 &&
                          direction.is_floating_point() && direction.sizes() == first.sizes(),
                      "ControlVector: direction ", layer,
                      " must be a float [d_model] as wide as the others (", first.sizes(), "), got ",
                      direction.sizes(), " ", direction.dtype());
    auto copy = direction.detach().to(torch::kCPU, torch::kFloat32).clone(at::MemoryFormat::Contiguous);
    check<std::invalid_argument>(copy.isfinite().all().item<bool>(), "ControlVector: direction ", layer,
                                 " must be finite, got NaN or infinity");
    directions_.emplace(layer, std::move(copy));
  }
}

std::vector<int64_t> ControlVector::layers() const {
  std::vector<int64_t> out;
  for (const auto& [layer, direction] : directions_) out.push_back(layer);
  return out;
}

ControlVector ControlVector::plus(const ControlVector& other, double factor) const {
  check<ConfigError>(model_type_ == other.model_type_,
                     "ControlVector: vectors must be of one model type, got '", model_type_, "' and '",
                     other.model_type_, "'");
  check<ShapeError>(d_model() == other.d_model(), "ControlVector: vectors must be of one width, got ",
                    d_model(), " and ", other.d_model());
  auto sum = directions_;
  for (const auto& [layer, direction] : other.directions_) {
    const auto scaled = direction * factor;
    const auto [place, is_new] = sum.emplace(layer, scaled);
    if (!is_new) place->second = place->second + scaled;
  }
  VectorOrigin origin;
  origin.method = "combination";
  if (origin_.model_hash == other.origin_.model_hash) {
    origin.model_hash = origin_.model_hash;
    origin.model_name = origin_.model_name;
  }
  return ControlVector(model_type_, sum, std::move(origin));
}

ControlVector ControlVector::operator+(const ControlVector& other) const {
  return plus(other, 1.0);
}
ControlVector ControlVector::operator-(const ControlVector& other) const {
  return plus(other, -1.0);
}
ControlVector ControlVector::operator-() const {
  return *this * -1.0;
}

ControlVector ControlVector::operator*(double factor) const {
  check<std::invalid_argument>(std::isfinite(factor), "ControlVector: the factor must be finite, got ",
                               factor);
  auto scaled = directions_;
  for (auto& [layer, direction] : scaled) direction = direction * factor;
  auto origin = origin_;
  if (factor <= 0) origin.diagnostics.clear();  // they are of the direction and its sign
  return ControlVector(model_type_, scaled, std::move(origin));
}

ControlVector ControlVector::operator/(double divisor) const {
  check<std::invalid_argument>(divisor != 0.0 && !std::isnan(divisor),
                               "ControlVector: the divisor must be a number other than zero, got ", divisor);
  auto scaled = directions_;
  for (auto& [layer, direction] : scaled) direction = direction / divisor;
  auto origin = origin_;
  if (divisor < 0) origin.diagnostics.clear();
  return ControlVector(model_type_, scaled, std::move(origin));
}

std::map<int64_t, double> ControlVector::norms() const {
  std::map<int64_t, double> out;
  for (const auto& [layer, direction] : directions_)
    out.emplace(layer, direction.to(torch::kFloat64).norm().item<double>());
  return out;
}

std::map<int64_t, double> ControlVector::cosine(const ControlVector& other) const {
  check<ShapeError>(d_model() == other.d_model(), "ControlVector: vectors must be of one width, got ",
                    d_model(), " and ", other.d_model());
  std::map<int64_t, double> out;
  for (const auto& [layer, direction] : directions_) {
    const auto found = other.directions_.find(layer);
    if (found == other.directions_.end()) continue;
    const auto a = direction.to(torch::kFloat64), b = found->second.to(torch::kFloat64);
    out.emplace(layer, (a.dot(b) / (a.norm() * b.norm())).item<double>());
  }
  return out;
}

bool ControlVector::operator==(const ControlVector& other) const {
  if (model_type_ != other.model_type_ || layers() != other.layers()) return false;
  for (const auto& [layer, direction] : directions_)
    if (!direction.equal(other.directions_.at(layer))) return false;
  return true;
}

void ControlVector::export_gguf(const std::filesystem::path& path) const {
  check<ConfigError>(
      directions_.count(0) == 0,
      "ControlVector::export_gguf: layers must be 1 or more, since llama.cpp has no direction for "
      "layer 0, got one (save_safetensors keeps it)");
  io::GgufWriter writer(kArchitecture);
  writer.set("controlvector.model_hint", model_type_);
  writer.set("controlvector.layer_count", static_cast<uint32_t>(directions_.size()));
  writer.set(kOriginKey, origin_json(origin_));
  for (const auto& [layer, direction] : directions_) writer.add(tensor_name(layer), direction);
  writer.write(path);
}

ControlVector ControlVector::import_gguf(const std::filesystem::path& path) {
  const auto file = io::GgufFile::open(path);
  check<IoError>(file->architecture() == kArchitecture, "ControlVector::import_gguf: ", path.string(),
                 ": general.architecture must be '", kArchitecture, "', got '", file->architecture(), "'");
  check<IoError>(file->has_key("controlvector.model_hint"), "ControlVector::import_gguf: ", path.string(),
                 ": the key controlvector.model_hint is missing");
  auto origin = file->has_key(kOriginKey) ? parse_origin(file->get_string(kOriginKey), path) : VectorOrigin();
  return ControlVector(file->get_string("controlvector.model_hint"), read_directions(*file, path),
                       std::move(origin));
}

void ControlVector::save_safetensors(const std::filesystem::path& path) const {
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto& [layer, direction] : directions_) tensors.emplace_back(tensor_name(layer), direction);
  io::save_safetensors(
      path, tensors,
      {{"format", kArchitecture}, {"model_type", model_type_}, {"origin", origin_json(origin_)}});
}

ControlVector ControlVector::load_safetensors(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto metadata = file->metadata();
  const auto value = [&](const std::string& key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  check<IoError>(value("format") == kArchitecture, "ControlVector::load_safetensors: ", path.string(),
                 ": the metadata 'format' must be '", kArchitecture, "', got '", value("format"), "'");
  return ControlVector(value("model_type"), read_directions(*file, path),
                       parse_origin(value("origin"), path));
}

void ControlVector::save(const std::filesystem::path& path) const {
  if (path.extension() == ".gguf") return export_gguf(path);
  check<std::invalid_argument>(path.extension() == ".safetensors",
                               "ControlVector::save: the file must end in .gguf or .safetensors, got ",
                               path.string());
  save_safetensors(path);
}

ControlVector ControlVector::load(const std::filesystem::path& path) {
  if (path.extension() == ".gguf") return import_gguf(path);
  check<std::invalid_argument>(path.extension() == ".safetensors",
                               "ControlVector::load: the file must end in .gguf or .safetensors, got ",
                               path.string());
  return load_safetensors(path);
}

ControlVector random_rotation(const ControlVector& vector, uint64_t seed) {
  std::vector<torch::Tensor> rows;
  for (const auto& [layer, direction] : vector.directions()) rows.push_back(direction.to(torch::kFloat64));
  const auto [q, r] = torch::linalg_qr(torch::stack(rows).t());
  const auto rotated = random_frame(q.size(0), q.size(1), seed).mm(r).t();
  ControlVector::Directions directions;
  int64_t row = 0;
  for (const auto layer : vector.layers()) directions.emplace(layer, rotated[row++]);
  auto origin = vector.origin();
  origin.method =
      concat("random rotation (seed ", seed, ") of ", origin.method.empty() ? "a vector" : origin.method);
  origin.diagnostics.clear();
  return ControlVector(vector.model_type(), directions, std::move(origin));
}

ControlVector random_directions(const ControlVector& vector, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  auto directions = vector.directions();
  for (auto& [layer, direction] : directions) {
    const auto random = torch::randn(direction.sizes(), generator, torch::kFloat64);
    direction = random * (direction.to(torch::kFloat64).norm() / random.norm());
  }
  const auto& of = vector.origin();
  return ControlVector(vector.model_type(), directions,
                       {of.model_name, of.model_hash, concat("random (seed ", seed, ")"), 0, {}, 0, {}});
}

std::map<int64_t, torch::Tensor> directions_in(const ControlVector& vector, int64_t n_layers,
                                               int64_t first_layer, int64_t last_layer) {
  check<std::out_of_range>(first_layer >= 0 && first_layer <= last_layer && last_layer < n_layers,
                           "steering: layers must be in order and from 0 to ", n_layers - 1, ", got ",
                           first_layer, " to ", last_layer);
  const auto& all = vector.directions();
  std::map<int64_t, torch::Tensor> out(all.lower_bound(first_layer), all.upper_bound(last_layer));
  check<ConfigError>(!out.empty(), "steering: the vector must have a direction in layers ", first_layer,
                     " to ", last_layer, ", got none (it has ", all.begin()->first, " to ",
                     all.rbegin()->first, ")");
  return out;
}

hooks::Intervention as_intervention(const ControlVector& vector, int64_t n_layers, int64_t first_layer,
                                    int64_t last_layer) {
  const auto directions = directions_in(vector, n_layers, first_layer, last_layer);
  return {.values = {directions.begin(), directions.end()}};
}

}  // namespace introspect::steering
