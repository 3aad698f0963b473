#include "introspect/sae/files.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "io/json_file.h"
#include "sae/formats/format.h"

namespace introspect::sae {
namespace {

namespace fs = std::filesystem;
using formats::Format;
using formats::Found;
using formats::Parts;

bool is_weights_file(const fs::path& path) {
  const auto end = path.extension();
  return end == ".safetensors" || end == ".npz" || end == ".pt" || end == ".pth";
}

/// The files of a folder that hold tensors, but not those that only accompany them.
std::vector<fs::path> weights_files(const fs::path& folder) {
  static const std::set<std::string> kBeside = {"sparsity.safetensors",
                                                "activations_store_state.safetensors",
                                                "activation_whitening.safetensors",
                                                "trainer_state.pt",
                                                "optimizer.pt",
                                                "state.pt"};
  std::vector<fs::path> out;
  std::error_code problem;
  for (fs::directory_iterator at(folder, problem), end; !problem && at != end; at.increment(problem))
    if (at->is_regular_file(problem) && is_weights_file(at->path()) &&
        !kBeside.contains(at->path().filename().string()))
      out.push_back(at->path());
  check<IoError>(!problem, "load_dictionary: ", folder.string(), " cannot be listed: ", problem.message());
  std::ranges::sort(out);
  return out;
}

/// The layer in layer_3.safetensors or layer3.sae.pt.
std::optional<int64_t> layer_of(const fs::path& file) {
  auto name = file.filename().string();
  if (!name.starts_with("layer")) return std::nullopt;
  name.erase(0, name.starts_with("layer_") ? 6 : 5);
  int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const std::string rest(end, static_cast<size_t>(name.data() + name.size() - end));
  if (error != std::errc() || (rest != ".safetensors" && rest != ".sae.pt" && rest != ".pt"))
    return std::nullopt;
  return layer;
}

fs::path weights_file(const fs::path& path, const LoadOptions& options) {
  std::error_code problem;
  if (!fs::is_directory(path, problem)) {
    check<IoError>(fs::exists(path, problem), "load_dictionary: there is no file or folder ", path.string());
    return path;
  }
  for (const char* name : {"sae_weights.safetensors", "params.npz", "params.safetensors", "sae.safetensors",
                           "checkpoints/final.safetensors", "ae.pt", "params_layer_0.safetensors"})
    if (fs::exists(path / name, problem)) return path / name;
  const auto files = weights_files(path);
  check<IoError>(!files.empty(), "load_dictionary: ", path.string(),
                 " holds no tensors: a .safetensors, .npz, .pt or .pth file is needed");
  check<ConfigError>(!files[0].filename().string().starts_with("W_"), "load_dictionary: ", path.string(),
                     " holds a cross-layer transcoder: load_cross_layer_transcoder reads it");
  if (options.layer)
    for (const auto& file : files)
      if (layer_of(file) == options.layer) return file;
  if (files.size() == 1 && !options.layer) return files[0];
  std::string names;
  for (const auto& file : files) names += (names.empty() ? "" : ", ") + file.filename().string();
  throw ConfigError(concat("load_dictionary: ", path.string(),
                           options.layer ? concat(" holds no file of layer ", *options.layer, "; there are ")
                                         : std::string(" holds several files, name one or a layer of them: "),
                           names));
}

const Format& format_of(const Found& found) {
  const auto& wanted = found.options.format;
  if (!wanted.empty()) {
    std::string known;
    for (const auto* const format : formats::formats()) {
      if (format->name == wanted) return *format;
      known += (known.empty() ? "" : ", ") + format->name;
    }
    throw ConfigError(
        concat("load_dictionary: the format must be one of ", known, ", got ", excerpt(wanted)));
  }
  for (const auto* const format : formats::formats())
    if (format->is_it(found)) return *format;
  std::string there;
  for (const auto& name : found.tensors.names()) there += (there.empty() ? "" : ", ") + excerpt(name);
  throw ConfigError(concat("load_dictionary: ", found.tensors.path().string(),
                           " is of no format that is known; it holds ", there.substr(0, 400)));
}

/// [F] of one number for all features, at least 0 where a relu makes it so.
torch::Tensor threshold_of(const Parts& parts, int64_t F) {
  auto threshold = parts.weights.threshold_F;
  if (threshold.numel() == 1) threshold = threshold.reshape({1}).expand({F});
  if (!parts.has_relu) return threshold.contiguous();
  const auto below = threshold.lt(0).sum().item<int64_t>();
  check<IoError>(
      threshold.numel() == 1 || threshold.std().item<double>() == 0 || 2 * below <= threshold.numel(), below,
      " of ", threshold.numel(), " thresholds are below 0: they are in another space, logarithms perhaps");
  return threshold.clamp_min(0).contiguous();
}

void fill(DictionaryOrigin& origin, const DictionaryOrigin& known) {
  if (origin.inputs.empty()) origin.inputs = known.inputs;
  if (origin.outputs.empty()) origin.outputs = known.outputs;
  const auto take = [](auto& to, const auto& from) {
    if (to.empty()) to = from;
  };
  take(origin.model_name, known.model_name);
  take(origin.model_hash, known.model_hash);
  take(origin.release, known.release);
  take(origin.sae_id, known.sae_id);
  if (!origin.context_size) origin.context_size = known.context_size;
  if (!origin.prepend_bos) origin.prepend_bos = known.prepend_bos;
  origin.centers_writing_weights |= known.centers_writing_weights;
  origin.masks_bos |= known.masks_bos;
  if (origin.notes == "{}") origin.notes = known.notes;
}

Dictionary finished(Parts parts, const LoadOptions& options) {
  const at::NoGradGuard no_grad;
  auto& w = parts.weights;
  check<IoError>(w.W_dec_FD.defined() && w.W_dec_FD.dim() == 2, "W_dec must be a matrix");
  const auto dtype = options.dtype.value_or(w.W_dec_FD.scalar_type());
  if (w.threshold_F.defined()) w.threshold_F = threshold_of(parts, w.W_dec_FD.size(0));
  for (auto* const tensor : {&w.W_enc_FD, &w.b_enc_F, &w.W_dec_FD, &w.b_dec_D, &w.threshold_F, &w.b_gate_F,
                             &w.b_mag_F, &w.r_mag_F, &w.W_skip_DD})
    if (tensor->defined()) *tensor = tensor->detach().to(options.device, dtype).contiguous();
  fill(parts.origin, options.origin);
  return {parts.config, std::move(w), std::move(parts.origin)};
}

}  // namespace

std::vector<std::string> dictionary_formats() {
  std::vector<std::string> out;
  for (const auto* const format : formats::formats()) out.push_back(format->name + ": " + format->holds);
  return out;
}

std::vector<int64_t> dictionary_layers(const fs::path& folder) {
  std::error_code problem;
  if (!fs::is_directory(folder, problem)) return {};
  std::vector<int64_t> out;
  for (const auto& file : weights_files(folder))
    if (const auto layer = layer_of(file)) out.push_back(*layer);
  std::ranges::sort(out);
  return out;
}

Dictionary load_dictionary(const fs::path& path, const LoadOptions& options) {
  const auto file = weights_file(path, options);
  std::error_code problem;
  const auto folder = fs::is_directory(path, problem) ? path : path.parent_path();
  const auto who = "load_dictionary: " + file.string() + ": ";
  const auto damaged = [&](const std::exception& error) {
    const std::string reason = error.what();
    return IoError(reason.starts_with(file.string()) ? "load_dictionary: " + reason : who + reason);
  };
  try {
    Found found{path, folder.empty() ? "." : folder, options, formats::Tensors(file)};
    const auto& format = format_of(found);
    auto parts = format.read(found);
    found.tensors.check_all_taken();
    return finished(std::move(parts), options);
  } catch (const IoError& error) {
    throw damaged(error);
  } catch (const ShapeError& error) {  // tensors that no dictionary can have: the file's fault
    throw damaged(error);
  } catch (const ConfigError& error) {
    const std::string reason = error.what();
    throw ConfigError(reason.starts_with("load_dictionary: ") ? reason : who + reason);
  } catch (const std::logic_error& error) {
    throw damaged(error);
  } catch (const c10::Error& error) {
    throw IoError(who + error.what_without_backtrace());
  }
}

void save_dictionary(const Dictionary& dictionary, const fs::path& folder, DictionaryFormat format) {
  std::error_code problem;
  fs::create_directories(folder, problem);
  check<IoError>(!problem, "save_dictionary: ", folder.string(), " cannot be made: ", problem.message());
  if (format == DictionaryFormat::saelens)
    formats::save_as_saelens(dictionary, folder);
  else
    formats::save_as_circuit_tracer(dictionary, folder);
}

}  // namespace introspect::sae
