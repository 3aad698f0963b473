#include "models/adapter_places.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <type_traits>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/models/weights_held.h"
#include "introspect/models/whole_weights.h"
#include "introspect/nn/parts.h"

#include "models/architecture.h"
#include "models/file_blocks.h"

namespace introspect::models {

namespace {

constexpr std::string_view kParts[] = {"attn.QKV", "attn.O", "mlp.in", "mlp.out"};

const WeightMap& weight_map(const Config& cfg) {
  const auto& all = families();
  const auto found = std::ranges::find(all, cfg.original_architecture, &Family::hf);
  check<ConfigError>(found != all.end(),
                     "with_adapter: adapters name the modules of a known architecture, this "
                     "model's is '",
                     cfg.original_architecture, "'");
  return found->hf_names;
}

int64_t n_in(std::string_view part, const Config& cfg) {
  return part == "attn.O" ? cfg.n_heads * cfg.d_head : part == "mlp.out" ? cfg.d_mlp : cfg.d_model;
}

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

  AdapterPlaces take() { return std::move(blocks_); }

 private:
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

  std::vector<AdapterPlace> block(int64_t layer) {
    std::vector<AdapterPlace> out;
    for (const auto part : kParts)
      for (const auto& rows : modules_of(map_, cfg_, part)) {
        const auto name = prefix_ + at_layer(rows.name, layer);
        const auto found = adapter_.modules().find(name);
        const bool is_there = found != adapter_.modules().end();
        check<ConfigError>(is_there == adapter_.targets(name, layer), "with_adapter: the adapter's config ",
                           is_there ? "does not ask" : "asks", " for '", name, "', which is ",
                           is_there ? "" : "not ", "in its file: it was trained on another model");
        if (!is_there) continue;
        const auto& [A, B, scaling] = found->second;
        check<ShapeError>(A.size(1) == n_in(part, cfg_) && B.size(0) == rows.n, "with_adapter: '", name,
                          "' must be A [r, ", n_in(part, cfg_), "] and B [", rows.n,
                          ", r] for this model, got ", A.sizes(), " and ", B.sizes());
        out.push_back(
            {name, part, rows.order, nn::LowRank{A, in_order(B, rows.order, cfg_), scaling, rows.first}});
        placed_.insert(name);
      }
    return out;
  }

  const Adapter& adapter_;
  const Config& cfg_;
  const WeightMap& map_;
  std::string prefix_;
  std::set<std::string> placed_;
  AdapterPlaces blocks_;
};

nn::Block adapted(const nn::Block& block, const std::vector<AdapterPlace>& places) {
  auto parts = block.parts();
  nn::for_each_part(parts, [&](std::string_view name, auto& part) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(part)>, nn::Linear>)
      for (const auto& place : places)
        if (place.part == name) part = part.plus(place.addition);
  });
  return nn::Block(std::move(parts));
}

}  // namespace

std::vector<AdapterModule> adapter_modules(const Model& model) {
  const auto& cfg = model.cfg();
  const auto& map = weight_map(cfg);
  std::vector<AdapterModule> out;
  for (int64_t layer = 0; layer < cfg.n_layers; ++layer)
    for (const auto part : kParts)
      for (const auto& rows : modules_of(map, cfg, part))
        out.push_back({map.prefixes.front() + at_layer(rows.name, layer), layer, n_in(part, cfg), rows.n,
                       map.transposed});
  return out;
}

AdapterPlaces places_of(const Adapter& adapter, const Model& model) {
  check<ConfigError>(
      !model.weights().is_processed,
      "with_adapter: LoRA was trained on the checkpoint's own weights, and this model's are processed "
      "(fold_ln and others): take the adapter first, and process what comes of it");
  check<ConfigError>(adapter.base_hash().empty() || adapter.base_hash() == model.hash(),
                     "with_adapter: the adapter was trained on the model with hash ", adapter.base_hash(),
                     ", this one's is ", model.hash(),
                     "; Adapter.load(folder, any_base=True) lets it run on every model that it fits");
  return Placing(adapter, model).take();
}

AdapterPlaces on_devices_of(const Model& model, AdapterPlaces places) {
  const auto dtype = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  for (size_t layer = 0; layer < places.size(); ++layer)
    for (auto& place : places[layer])
      for (auto* matrix : {&place.addition.A, &place.addition.B})
        *matrix = matrix->to(model.device(static_cast<int64_t>(layer)), dtype);
  return places;
}

std::shared_ptr<const Model> with_additions(const Model& model, const AdapterPlaces& places,
                                            std::string hash) {
  auto weights = whole_weights(model, "with_additions");
  for (size_t layer = 0; layer < weights.blocks.size(); ++layer)
    weights.blocks[layer] = adapted(weights.blocks[layer], places[layer]);
  return model.derived(model.cfg(), std::move(weights), std::move(hash));
}

std::shared_ptr<const Model> Model::with_adapter(const Adapter& adapter, double scale) const {
  check<std::invalid_argument>(std::isfinite(scale), "with_adapter: scale must be a finite number, got ",
                               scale);
  const at::NoGradGuard no_grad;
  auto places = places_of(adapter, *this);
  if (scale == 0) return derived(cfg_, weights_, hash_);
  places = on_devices_of(*this, std::move(places));
  for (auto& layer : places)
    for (auto& place : layer) place.addition.scaling *= scale;
  Sha256 hash;
  hash.update(concat(hash_, " adapter ", adapter.hash(), " ")).update(&scale, sizeof scale);
  if (!weights_.read_block) return with_additions(*this, places, hash.hex());
  auto weights = weights_;
  const auto changed = [places, read = weights.read_block](int64_t layer) {
    return adapted(read(layer), places[static_cast<size_t>(layer)]);
  };
  weights.read_block = FileBlocks{changed, weights_held(*this)};
  return derived(cfg_, std::move(weights), hash.hex());
}

}  // namespace introspect::models
