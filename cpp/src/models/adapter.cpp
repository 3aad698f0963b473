#include "introspect/models/adapter.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/safetensors.h"
#include "introspect/models/model.h"
#include "introspect/nn/parts.h"

#include "models/adapter_config.h"
#include "models/architecture.h"
#include "models/part_names.h"

namespace introspect::models {

namespace {

constexpr std::string_view kBase = "base_model.model.";  // what peft puts in front of a module's name

std::shared_ptr<const io::SafetensorsFile> open_weights(const std::filesystem::path& folder) {
  const auto path = folder / "adapter_model.safetensors";
  check<ConfigError>(std::filesystem::exists(path) || !std::filesystem::exists(folder / "adapter_model.bin"),
                     "Adapter::load: ", (folder / "adapter_model.bin").string(),
                     " is a pickle, which runs code when it is loaded; save the adapter as safetensors");
  return io::SafetensorsFile::open(path);
}

/// "base_model.model.h.0.attn.c_attn.lora_A.weight" -> "h.0.attn.c_attn" and true for A.
std::pair<std::string, bool> parse_name(std::string_view name, const std::string& where) {
  constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight";
  check<ConfigError>(name.starts_with(kBase) && (name.ends_with(kA) || name.ends_with(kB)), where,
                     ": the tensor '", name, "' is not supported: only LoRA matrices of modules are");
  const bool is_A = name.ends_with(kA);
  name.remove_prefix(kBase.size());
  name.remove_suffix(kA.size());
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

/// The additions to one block, by the names of its parts.
using Additions = std::vector<std::pair<std::string_view, nn::LowRank>>;

/// Where the modules of an adapter belong in a model. Throws as Model::with_adapter.
class Placing {
 public:
  Placing(const Adapter& adapter, const Model& model)
      : adapter_(adapter), cfg_(model.cfg()), map_(weight_map(cfg_)), prefix_(prefix()) {
    for (int64_t layer = 0; layer < cfg_.n_layers; ++layer) blocks_.push_back(block(layer));
    for (const auto& [name, module] : adapter_.modules())
      check<ConfigError>(placed_.contains(name), "with_adapter: a ", cfg_.original_architecture, " model of ",
                         cfg_.n_layers, " layers has no module '", name, "' for the adapter");
  }

  const std::vector<Additions>& blocks() const { return blocks_; }

 private:
  static const WeightMap& weight_map(const Config& cfg) {
    const auto& all = families();
    const auto found = std::ranges::find(all, cfg.original_architecture, &Family::hf);
    check<ConfigError>(found != all.end(),
                       "with_adapter: adapters name the modules of a known architecture, this "
                       "model's is '",
                       cfg.original_architecture, "'");
    return found->hf_names;
  }

  /// What stands before the names of modules: nothing for an adapter of a model without its head.
  std::string prefix() const {
    const auto& any = map_.out;  // "layers.{}.mlp.down_proj"
    const auto stem = any.substr(0, any.find("{}"));
    auto prefixes = map_.prefixes;
    prefixes.emplace_back();
    for (const auto& prefix : prefixes)
      for (const auto& [name, module] : adapter_.modules())
        if (name.starts_with(prefix + stem)) return prefix;
    throw ConfigError(concat("with_adapter: the adapter is for other modules than a ",
                             cfg_.original_architecture, " model's: '", adapter_.modules().begin()->first,
                             "'"));
  }

  int64_t n_in(std::string_view part) const {
    return part == "attn.O" ? cfg_.n_heads * cfg_.d_head : part == "mlp.out" ? cfg_.d_mlp : cfg_.d_model;
  }

  Additions block(int64_t layer) {
    Additions out;
    for (const std::string_view part : {"attn.QKV", "attn.O", "mlp.in", "mlp.out"})
      for (const auto& rows : modules_of(map_, cfg_, part)) {
        const auto name = prefix_ + at_layer(rows.name, layer);
        const auto found = adapter_.modules().find(name);
        const bool is_there = found != adapter_.modules().end();
        check<ConfigError>(is_there == adapter_.targets(name, layer), "with_adapter: the adapter's config ",
                           is_there ? "does not ask" : "asks", " for '", name, "', which is ",
                           is_there ? "" : "not ", "in its file: it was trained on another model");
        if (!is_there) continue;
        const auto& [A, B, scaling] = found->second;
        check<ShapeError>(A.size(1) == n_in(part) && B.size(0) == rows.n, "with_adapter: '", name,
                          "' must be A [r, ", n_in(part), "] and B [", rows.n, ", r] for this model, got ",
                          A.sizes(), " and ", B.sizes());
        out.emplace_back(part, nn::LowRank{A, in_order(B, rows.order, cfg_), scaling, rows.first});
        placed_.insert(name);
      }
    return out;
  }

  const Adapter& adapter_;
  const Config& cfg_;
  const WeightMap& map_;
  std::string prefix_;
  std::set<std::string> placed_;
  std::vector<Additions> blocks_;
};

}  // namespace

std::shared_ptr<const Adapter> Adapter::load(const std::filesystem::path& folder) {
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

std::shared_ptr<const Model> Model::with_adapter(const Adapter& adapter, double scale) const {
  check<std::invalid_argument>(std::isfinite(scale), "with_adapter: scale must be a finite number, got ",
                               scale);
  check<ConfigError>(
      !weights_.is_processed,
      "with_adapter: LoRA was trained on the checkpoint's own weights, and this model's are processed "
      "(fold_ln and others): take the adapter first, and process what comes of it");
  const at::NoGradGuard no_grad;
  const Placing placing(adapter, *this);
  if (scale == 0) return derived(cfg_, weights_, hash_);
  const auto dtype = this->dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  std::vector<Additions> blocks = placing.blocks();
  for (int64_t layer = 0; layer < cfg_.n_layers; ++layer)
    for (auto& [part, addition] : blocks[static_cast<size_t>(layer)]) {
      addition.A = addition.A.to(device(layer), dtype);
      addition.B = addition.B.to(device(layer), dtype);
      addition.scaling *= scale;
    }

  const auto adapted = [](const nn::Block& block, const Additions& additions) {
    auto parts = block.parts();
    nn::for_each_part(parts, [&](std::string_view name, auto& part) {
      if constexpr (std::is_same_v<std::remove_cvref_t<decltype(part)>, nn::Linear>)
        for (const auto& [where, addition] : additions)
          if (where == name) part = part.plus(addition);
    });
    return nn::Block(std::move(parts));
  };
  auto weights = weights_;
  for (size_t layer = 0; layer < weights.blocks.size(); ++layer)
    weights.blocks[layer] = adapted(weights.blocks[layer], blocks[layer]);
  if (weights.read_block)
    weights.read_block = [adapted, blocks, read = weights.read_block](int64_t layer) {
      return adapted(read(layer), blocks[static_cast<size_t>(layer)]);
    };
  Sha256 hash;
  hash.update(concat(hash_, " adapter ", adapter.hash(), " ")).update(&scale, sizeof scale);
  return derived(cfg_, std::move(weights), hash.hex());
}

}  // namespace introspect::models
