#include "introspect/models/adapter.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/file.h"
#include "introspect/io/safetensors.h"
#include "introspect/models/model.h"

#include "core/nearest.h"
#include "models/adapter_config.h"
#include "models/adapter_places.h"

namespace introspect::models {

namespace {

constexpr std::string_view kBase = "base_model.model.";  // what peft puts in front of a module's name
constexpr std::string_view kEndA = ".lora_A.weight", kEndB = ".lora_B.weight";
constexpr auto kBaseHash = "introspect_base_hash";  // in the metadata of files written here

std::shared_ptr<const io::SafetensorsFile> open_weights(const std::filesystem::path& folder) {
  const auto path = folder / "adapter_model.safetensors";
  check<ConfigError>(std::filesystem::exists(path) || !std::filesystem::exists(folder / "adapter_model.bin"),
                     "Adapter::load: ", (folder / "adapter_model.bin").string(),
                     " is a pickle, which runs code when it is loaded; save the adapter as safetensors");
  return io::SafetensorsFile::open(path);
}

/// "base_model.model.h.0.attn.c_attn.lora_A.weight" -> "h.0.attn.c_attn" and true for A.
std::pair<std::string, bool> parse_name(std::string_view name, const std::string& where) {
  check<ConfigError>(name.starts_with(kBase) && (name.ends_with(kEndA) || name.ends_with(kEndB)), where,
                     ": the tensor '", name, "' is not supported: only LoRA matrices of modules are");
  const bool is_A = name.ends_with(kEndA);
  name.remove_prefix(kBase.size());
  name.remove_suffix(kEndA.size());
  return {std::string(name), is_A};
}

std::string hash_of(const std::map<std::string, Adapter::Module>& modules) {
  Sha256 hash;
  hash.update("LoRA");
  for (const auto& [name, module] : modules) {
    hash.update(concat(" ", name, ":")).update(&module.scaling, sizeof module.scaling);
    for (const auto& tensor : {module.A, module.B})
      hash.update(concat(tensor.sizes())).update(tensor.const_data_ptr(), tensor.nbytes());
  }
  return hash.hex();
}

/// The ends of all modules' names: "q_proj".
std::vector<std::string> leaves(const std::vector<AdapterModule>& modules) {
  std::set<std::string> out;
  for (const auto& module : modules) out.insert(module.name.substr(module.name.rfind('.') + 1));
  return {out.begin(), out.end()};
}

void check_targets(const AdapterOptions& options, const std::vector<AdapterModule>& modules,
                   const Config& cfg) {
  check<std::invalid_argument>(options.rank >= 1, "Adapter: rank must be 1 or more, got ", options.rank);
  check<std::invalid_argument>(std::isfinite(options.alpha) && options.alpha > 0,
                               "Adapter: alpha must be a finite number above 0, got ", options.alpha);
  for (const int64_t layer : options.layers)
    check<std::out_of_range>(layer >= 0 && layer < cfg.n_layers, "Adapter: layers must be 0 to ",
                             cfg.n_layers - 1, ", got ", layer);
  for (const auto& target : options.targets) {
    const ModuleChoice choice{{target}, {}, false};
    check<ConfigError>(
        std::ranges::any_of(modules, [&](const auto& module) { return choice.has(module.name); }),
        "Adapter: no module of a ", cfg.original_architecture, " model is called '", target,
        "'; nearest: ", nearest_names(target, leaves(modules)));
  }
}

/// adapter_config.json of a new adapter, with the fields and defaults of peft's LoraConfig.
nlohmann::json config_json(const AdapterOptions& options, const std::vector<AdapterModule>& modules,
                           const Config& cfg) {
  auto layers = options.layers;
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return {{"peft_type", "LORA"},
          {"task_type", "CAUSAL_LM"},
          {"r", options.rank},
          {"lora_alpha", options.alpha},
          {"target_modules", options.targets.empty() ? leaves(modules) : options.targets},
          {"layers_to_transform", layers.empty() ? nlohmann::json() : nlohmann::json(layers)},
          {"fan_in_fan_out", modules.front().is_transposed},
          {"base_model_name_or_path", cfg.model_name},
          {"lora_dropout", 0.0},
          {"bias", "none"},
          {"use_rslora", false},
          {"use_dora", false},
          {"init_lora_weights", true},
          {"inference_mode", true}};
}

}  // namespace

std::shared_ptr<const Adapter> Adapter::load(const std::filesystem::path& folder, bool any_base) {
  const at::NoGradGuard no_grad;
  auto config = std::make_shared<AdapterConfig>(read_adapter_config(folder / "adapter_config.json"));
  const auto file = open_weights(folder);
  const auto where = "Adapter::load: " + folder.string();
  std::shared_ptr<Adapter> out(new Adapter);
  for (const auto& name : file->names()) {
    const auto [module, is_A] = parse_name(name, where);
    file->check_readable(name);
    const auto dtype = file->dtype(name) == "F64" ? torch::kFloat64 : torch::kFloat32;
    auto& tensor = is_A ? out->modules_[module].A : out->modules_[module].B;
    tensor = file->read(name, dtype);
  }
  check<ConfigError>(!out->modules_.empty(), where, " holds no LoRA matrices");
  for (auto& [name, module] : out->modules_) {
    const int64_t r = config->rank_of(name);
    check<ShapeError>(module.A.defined() && module.B.defined() && module.A.dim() == 2 &&
                          module.B.dim() == 2 && module.A.size(0) == r && module.B.size(1) == r,
                      where, ": '", name, "' must have lora_A [", r, ", in] and lora_B [out, ", r, "], got ",
                      module.A.defined() ? module.A.sizes() : at::IntArrayRef{}, " and ",
                      module.B.defined() ? module.B.sizes() : at::IntArrayRef{});
    module.scaling = config->scaling_of(name);
  }
  out->base_model_ = config->base_model;
  if (const auto base = file->metadata().find(kBaseHash); base != file->metadata().end() && !any_base)
    out->base_hash_ = base->second;
  out->hash_ = hash_of(out->modules_);
  out->config_ = std::move(config);
  return out;
}

bool Adapter::targets(const std::string& module, int64_t layer) const {
  return config_->is_target(module, layer);
}

int64_t Adapter::n_params() const {
  int64_t n = 0;
  for (const auto& [name, module] : modules_) n += module.A.numel() + module.B.numel();
  return n;
}

std::shared_ptr<const Adapter> Adapter::create(const Model& model, const AdapterOptions& options) {
  const at::NoGradGuard no_grad;
  const auto modules = adapter_modules(model);
  check_targets(options, modules, model.cfg());
  std::shared_ptr<Adapter> out(new Adapter);
  out->config_ = std::make_shared<AdapterConfig>(
      parse_adapter_config(config_json(options, modules, model.cfg()), "Adapter: "));
  auto generator = at::detail::createCPUGenerator(options.seed);
  const auto like = at::dtype(model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
  for (const auto& [name, layer, n_in, n_out, is_transposed] : modules) {
    if (!out->targets(name, layer)) continue;
    // kaiming_uniform_ with a = sqrt(5)
    const double bound = 1 / std::sqrt(static_cast<double>(n_in));
    out->modules_[name] = {at::empty({options.rank, n_in}, like).uniform_(-bound, bound, generator),
                           at::zeros({n_out, options.rank}, like), out->config_->scaling_of(name)};
  }
  out->base_model_ = model.cfg().model_name;
  out->base_hash_ = model.hash();
  out->hash_ = hash_of(out->modules_);
  return out;
}

std::shared_ptr<const Adapter> Adapter::with_matrices(const std::map<std::string, Module>& modules) const {
  const at::NoGradGuard no_grad;
  std::shared_ptr<Adapter> out(new Adapter(*this));
  check<ConfigError>(modules.size() == modules_.size(), "Adapter::with_matrices: ", modules_.size(),
                     " modules are needed, got ", modules.size());
  for (auto& [name, mine] : out->modules_) {
    const auto found = modules.find(name);
    check<ConfigError>(found != modules.end(), "Adapter::with_matrices: '", name, "' is missing");
    const auto& [A, B, scaling] = found->second;
    check<ShapeError>(A.sizes() == mine.A.sizes() && B.sizes() == mine.B.sizes(), "Adapter::with_matrices: '",
                      name, "' must be ", mine.A.sizes(), " and ", mine.B.sizes(), ", got ", A.sizes(),
                      " and ", B.sizes());
    const auto kept = [](const torch::Tensor& t) {
      return t.detach().to(torch::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous();
    };
    mine = {kept(A), kept(B), mine.scaling};
  }
  out->hash_ = hash_of(out->modules_);
  return out;
}

void Adapter::save(const std::filesystem::path& folder) const {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  check<IoError>(!error, "Adapter::save: ", folder.string(), ": ", error.message());
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto& [name, module] : modules_) {
    tensors.emplace_back(concat(kBase, name, kEndA), module.A);
    tensors.emplace_back(concat(kBase, name, kEndB), module.B);
  }
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (!base_hash_.empty()) metadata[kBaseHash] = base_hash_;
  io::save_safetensors(folder / "adapter_model.safetensors", tensors, metadata);
  io::write_atomically(folder / "adapter_config.json", config_->text + "\n");
}

}  // namespace introspect::models
