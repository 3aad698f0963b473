#include "models/weight_reader.h"

#include <algorithm>
#include <functional>
#include <optional>

#include "core/dequantise.h"
#include "core/free_memory.h"
#include "introspect/core/check.h"
#include "introspect/io/mapped_tensors.h"
#include "introspect/ops/quantised_rows.h"
#include "models/file_blocks.h"
#include "models/make_block.h"
#include "models/part_names.h"

namespace introspect::models {

namespace {

using hooks::Point;

class WeightReader {
 public:
  WeightReader(std::shared_ptr<const io::TensorSource> source, const Architecture& architecture,
               const LoadOptions& options)
      : source_(std::move(source)),
        cfg_(architecture.cfg),
        map_(architecture.map),
        dtype_(options.dtype),
        device_(options.device),
        prefix_(name_prefix(*source_, map_)) {
    if (options.weights == WeightsHeld::kAsStored) {
      stored_ = std::dynamic_pointer_cast<const io::MappedTensors>(source_);
      const auto names = source_->names();
      check<ConfigError>(
          stored_ && std::any_of(names.begin(), names.end(), [&](const auto& name) { return stays(name); }),
          "Model::load: weights='as stored' needs a file with quantised blocks, and this one has none");
    }
    if (options.block_devices.empty()) return;
    block_devices_.assign(static_cast<size_t>(cfg_.n_layers), at::empty({0}, at::device(device_)).device());
    for (const auto& [layer, device] : options.block_devices) {
      check<ConfigError>(layer >= 0 && layer < cfg_.n_layers, "model: a device is given for block ", layer,
                         ", and blocks are 0 to ", cfg_.n_layers - 1);
      // As a tensor there names it: "cuda" is "cuda:0".
      block_devices_[static_cast<size_t>(layer)] = at::empty({0}, at::device(device)).device();
    }
  }

  struct Checked {
    std::vector<int64_t> block_bytes;  // that each block takes in the files
    int64_t held_bytes = 0;            // that the model takes in memory
  };

  /// Compares every tensor's shape with the config's before any is read or its memory taken.
  Checked check_shapes() const {
    Checked out;
    auto checking = *this;
    checking.checked_ = &out;
    checking.read_outside();
    for (int64_t layer = 0; layer < cfg_.n_layers; ++layer) {
      out.block_bytes.push_back(0);
      checking.block(layer);
    }
    return out;
  }

  /// From here on blocks that are used as they are stored are used where they lie in the file.
  void leave_in_file() { copy_bytes_ = false; }

  /// Everything but the blocks.
  Weights read_outside() const {
    const int64_t D = cfg_.d_model, V = cfg_.d_vocab;
    Weights w;
    w.block_devices = block_devices_;
    w.W_E = matrix(prefix_ + map_.embed + ".weight", {V, D});
    if (!map_.pos_embed.empty()) w.W_pos = tensor(prefix_ + map_.pos_embed + ".weight", {cfg_.n_ctx, D});
    w.ln_final = make_norm(cfg_, *this, "ln_final", D, Point::kLnFinalScale, Point::kLnFinalNormalized);
    w.W_U = cfg_.tie_word_embeddings ? w.W_E : unembedding();
    if (cfg_.positional_embedding_type == "rotary" && !checked_) read_frequencies(w);
    return w;
  }

  nn::Block block(int64_t layer) const {
    auto reader = *this;
    reader.layer_ = layer;
    if (!block_devices_.empty()) reader.device_ = block_devices_.at(static_cast<size_t>(layer));
    return make_block(cfg_, layer, reader);
  }

  // What make_block asks of its source.

  nn::Linear linear(std::string_view part, int64_t rows, int64_t columns, bool has_bias) const {
    if (part == "mlp.router") {
      const auto name = named(expert_names().router);
      return nn::Linear(tensor(name + ".weight", {rows, columns}),
                        has_bias ? tensor(name + ".bias", {rows}) : torch::Tensor{});
    }
    const auto modules = modules_of(map_, cfg_, part);
    const auto bias = has_bias ? fused(modules, ".bias", {rows}) : torch::Tensor{};
    if (const auto blocks = stored_rows(modules, rows, columns)) return nn::Linear(*blocks, bias);
    return nn::Linear(fused(modules, ".weight", {rows, columns}), bias);
  }

  torch::Tensor vector(std::string_view, int64_t width) const { return tensor(named(map_.sinks), {width}); }

  std::vector<nn::MlpWeights> experts(int64_t rows) const {
    const int64_t E = cfg_.num_experts, D = cfg_.d_model, M = cfg_.d_mlp;
    const auto& names = expert_names();
    const bool two = names.gate_in.empty();
    const auto in_names = two ? std::vector{names.gate, names.in} : std::vector{names.gate_in};
    const auto stored_in = stored_experts(in_names, names, rows, D),
               stored_out = stored_experts({names.out}, names, D, M);
    const auto in = stored_in.empty() ? expert_stack(in_names, names.weight_suffix, {E, rows, D})
                                      : torch::Tensor{},
               out = stored_out.empty() ? expert_stack({names.out}, names.weight_suffix, {E, D, M})
                                        : torch::Tensor{};
    torch::Tensor b_in, b_out;
    if (cfg_.mlp_bias) {
      b_in = expert_stack(in_names, names.bias_suffix, {E, rows});
      b_out = expert_stack({names.out}, names.bias_suffix, {E, D});
    }
    const auto of = [](const torch::Tensor& b, int64_t e) { return b.defined() ? b[e] : b; };
    std::vector<nn::MlpWeights> all;
    const auto linear = [&](const std::vector<ops::QuantisedRows>& stored, const torch::Tensor& dense,
                            int64_t e, const torch::Tensor& b) {
      return dense.defined() ? nn::Linear(dense[e], of(b, e))
                             : nn::Linear(stored[static_cast<size_t>(e)], of(b, e));
    };
    for (int64_t e = 0; e < E; ++e)
      all.push_back({linear(stored_in, in, e, b_in), linear(stored_out, out, e, b_out)});
    return all;
  }

  std::pair<torch::Tensor, torch::Tensor> norm(std::string_view part, int64_t width,
                                               nn::NormKind kind) const {
    const auto name = named(norm_module(map_, part));
    if (kind != nn::NormKind::kGemmaRms)
      return {tensor(name + ".weight", {width}),
              kind == nn::NormKind::kLayer ? tensor(name + ".bias", {width}) : torch::Tensor{}};
    const auto weight = tensor(name + ".weight", {width}, torch::kFloat32);
    return {map_.norms_hold_one_plus ? weight : weight + 1, {}};
  }

 private:
  const ExpertNames& expert_names() const {
    for (const auto& names : map_.experts)
      if (source_->has(at_expert(named(names.out), 0) + names.weight_suffix)) return names;
    return map_.experts.front();
  }

  /// The experts' tensors of these names, whose rows stand one after another, whichever way the checkpoint keeps them:
  /// [E, rows, columns], or biases [E, rows].
  torch::Tensor expert_stack(const std::vector<std::string>& modules, const std::string& suffix,
                             const std::vector<int64_t>& sizes) const {
    const auto& layout = expert_names();
    const int64_t E = sizes[0], n = sizes[1] / static_cast<int64_t>(modules.size());
    const bool by_expert = modules.front().find("{e}") != std::string::npos;
    const bool flip = layout.transposed && sizes.size() == 3;
    auto stored = sizes;
    stored[1] = n;
    if (flip) std::swap(stored[1], stored[2]);
    for (const auto& module : modules)
      for (int64_t e = 0; e < (by_expert ? E : 1); ++e)
        check_tensor(at_expert(named(module), e) + suffix,
                     by_expert ? at::IntArrayRef(stored).slice(1) : at::IntArrayRef(stored));
    if (checked_) return at::empty(sizes, at::device(torch::kMeta).dtype(dtype_));
    auto out = at::empty(sizes, dtype_);
    for (size_t i = 0; i < modules.size(); ++i) {
      const int64_t first = static_cast<int64_t>(i) * n;
      if (by_expert) {
        for (int64_t e = 0; e < E; ++e) {
          auto rows = out[e].narrow(0, first, n);
          source_->read_into(at_expert(named(modules[i]), e) + suffix, rows);
        }
      } else if (modules.size() == 1 && !flip && !layout.interleaved) {
        source_->read_into(named(modules[i]) + suffix, out);
      } else {
        const auto read = source_->read(named(modules[i]) + suffix, dtype_);
        out.narrow(1, first, n).copy_(flip ? read.transpose(1, 2) : read);
      }
    }
    if (layout.interleaved && !layout.gate_in.empty() && modules.front() == layout.gate_in)
      out = out.unflatten(1, {n / 2, 2}).transpose(1, 2).flatten(1, 2).contiguous();
    return out.to(device_);
  }

  std::string named(const std::string& module) const { return prefix_ + at_layer(module, layer_); }

  nn::Linear unembedding() const {
    auto name = unembed_name(*source_, map_);
    if (name.empty()) name = map_.unembed.front() + ".weight";  // for the error that names it
    return matrix(name, {cfg_.d_vocab, cfg_.d_model});
  }

  void read_frequencies(Weights& w) const {
    w.rotary_frequencies = ops::rotary_frequencies(cfg_.rotary_dim, cfg_.rotary_base, cfg_.rotary_scaling);
    if (!map_.rotary_factors.empty() && source_->has(map_.rotary_factors)) {
      check_tensor(map_.rotary_factors, {cfg_.rotary_dim / 2});
      const auto factors = source_->read(map_.rotary_factors, torch::kFloat32);
      check<ConfigError>((factors.isfinite() & (factors > 0)).all().item<bool>(), "model: the tensor '",
                         map_.rotary_factors, "' must hold positive numbers");
      w.rotary_frequencies = w.rotary_frequencies / factors;
    }
    w.rotary_frequencies = w.rotary_frequencies.to(device_);
    if (cfg_.rotary_base_local > 0)
      w.rotary_frequencies_local =
          ops::rotary_frequencies(cfg_.rotary_dim, cfg_.rotary_base_local, {}).to(device_);
  }

  // Matrices that stay in their blocks.

  /// True if a tensor takes less memory as it is stored than in the model's dtype.
  bool stays(const std::string& name) const {
    const auto* format = find_block_format(source_->dtype(name));
    const auto size = static_cast<int64_t>(c10::elementSize(dtype_));
    return format && format->layout.block_bytes < size * format->layout.block_elements;
  }

  /// The stored bytes of a tensor, uint8 [rows, bytes of a row], its last dimension `columns` long; a view of the mapped
  /// file where blocks stay there.
  torch::Tensor blocks_of(const std::string& name, int64_t rows, int64_t columns) const {
    const auto encoding = source_->dtype(name);
    const auto [elements, size] = find_block_format(encoding)->layout;
    check<ConfigError>(columns % elements == 0, "model: the tensor '", name, "' is stored as ", encoding,
                       ", whose blocks of ", elements, " do not divide its rows of ", columns,
                       ": load it with weights='dense'");
    const std::vector<int64_t> sizes = {rows, columns / elements * size};
    if (copy_bytes_) return stored_->read_bytes(name).view(sizes);
    const auto bytes = stored_->bytes(name);
    stored_->will_need(name);
    const bool is_block = layer_ >= 0;  // all of it is used at once, and then no more
    if (is_block) stored_->bring(name);
    const auto let_go = [keep = stored_, name, is_block](void*) {
      if (is_block) keep->let_go(name);
    };
    // from_blob takes a mutable pointer; the bytes are only read.
    return torch::from_blob(const_cast<std::byte*>(bytes.data()), sizes, let_go, torch::kByte);
  }

  /// Throws where the file of blocks that stay there is no longer what it was.
  std::function<void()> check_of(const std::string& name) const {
    if (copy_bytes_) return {};
    return [stored = stored_, name] { stored->check_unchanged(name); };
  }

  /// The modules' rows one after another as they stand in the file; nothing unless one of them is quantised and all can be
  /// held so.
  std::optional<ops::QuantisedRows> stored_rows(const std::vector<ModuleRows>& modules, int64_t rows,
                                                int64_t columns) const {
    if (!stored_ || checked_ || map_.transposed) return std::nullopt;
    bool any = false, all = !modules.empty();
    for (const auto& module : modules) {
      const auto name = named(module.name) + ".weight";
      any = any || stays(name);
      all = all && ops::QuantisedRows::can_hold(source_->dtype(name));
    }
    if (!any || !all) return std::nullopt;
    std::vector<ops::QuantisedRows> parts;
    int64_t n = 0;
    for (const auto& module : modules) {
      const auto name = named(module.name) + ".weight";
      check_tensor(name, {module.n, columns});
      auto bytes = blocks_of(name, module.n, columns);
      if (copy_bytes_)
        put_in_order(bytes, module.order, cfg_);
      else
        bytes = in_order(bytes, module.order, cfg_).contiguous();
      check<Error>(module.first == n, "weight_reader: modules must follow one another");
      n += module.n;
      parts.emplace_back(source_->dtype(name), std::move(bytes), dtype_, check_of(name));
    }
    check<Error>(n == rows, "weight_reader: modules must make up the rows");
    return ops::QuantisedRows::joined(parts);
  }

  /// The same of each expert; none unless all of their tensors hold one expert after another.
  std::vector<ops::QuantisedRows> stored_experts(const std::vector<std::string>& modules,
                                                 const ExpertNames& names, int64_t rows,
                                                 int64_t columns) const {
    if (!stored_ || checked_ || names.transposed || names.interleaved) return {};
    const int64_t E = cfg_.num_experts, n = rows / static_cast<int64_t>(modules.size());
    std::vector<std::vector<ops::QuantisedRows>> parts(static_cast<size_t>(E));
    for (const auto& module : modules) {
      const bool by_expert = module.find("{e}") != std::string::npos;
      torch::Tensor all;
      for (int64_t e = 0; e < E; ++e) {
        const auto name = at_expert(named(module), e) + names.weight_suffix;
        if (!stays(name)) return {};
        if (by_expert || !all.defined()) {
          check_tensor(name, by_expert ? at::IntArrayRef({n, columns}) : at::IntArrayRef({E, n, columns}));
          all = blocks_of(name, by_expert ? n : E * n, columns);
        }
        parts[static_cast<size_t>(e)].emplace_back(
            source_->dtype(name), by_expert ? all : all.narrow(0, e * n, n), dtype_, check_of(name));
      }
    }
    std::vector<ops::QuantisedRows> out;
    for (const auto& of_expert : parts) out.push_back(ops::QuantisedRows::joined(of_expert));
    return out;
  }

  nn::Linear matrix(const std::string& name, const std::vector<int64_t>& sizes) const {
    if (!stored_ || checked_ || !source_->has(name) || !stays(name)) return nn::Linear(tensor(name, sizes));
    check_tensor(name, sizes);
    return nn::Linear(ops::QuantisedRows(source_->dtype(name), blocks_of(name, sizes[0], sizes[1]), dtype_,
                                         check_of(name)));
  }

  torch::Tensor tensor(const std::string& name, const std::vector<int64_t>& sizes) const {
    return tensor(name, sizes, dtype_);
  }

  torch::Tensor tensor(const std::string& name, const std::vector<int64_t>& sizes,
                       torch::ScalarType dtype) const {
    check_tensor(name, sizes);
    if (checked_) return at::empty(sizes, at::device(torch::kMeta).dtype(dtype));
    auto out = at::empty(sizes, dtype);
    source_->read_into(name, out);
    return out.to(device_);
  }

  /// The modules' rows one after another, whichever way round the checkpoint keeps its matrices.
  torch::Tensor fused(const std::vector<ModuleRows>& modules, const char* suffix,
                      const std::vector<int64_t>& sizes) const {
    const bool transposed = map_.transposed && sizes.size() == 2;
    auto out = checked_ ? torch::Tensor{} : at::empty(sizes, dtype_);
    for (const auto& module : modules) {
      const auto name = named(module.name) + suffix;
      auto stored = sizes;
      stored[0] = module.n;
      if (transposed) std::swap(stored[0], stored[1]);
      check_tensor(name, stored);
      if (checked_) continue;
      auto rows = out.narrow(0, module.first, module.n);
      if (transposed)
        rows.copy_(source_->read(name, dtype_).t());
      else
        source_->read_into(name, rows);
      put_in_order(rows, module.order, cfg_);
    }
    return checked_ ? at::empty(sizes, at::device(torch::kMeta).dtype(dtype_)) : out.to(device_);
  }

  void check_tensor(const std::string& name, at::IntArrayRef sizes) const {
    check<ConfigError>(source_->has(name), "model: the tensor '", name, "' is missing from the files of a ",
                       cfg_.original_architecture, " model");
    const auto shape = source_->shape(name);
    check<ShapeError>(sizes == at::IntArrayRef(shape), "model: the tensor '", name, "' must be ", sizes,
                      " by the config, got ", at::IntArrayRef(shape));
    source_->check_readable(name);
    if (!checked_) return;
    const int64_t n = c10::multiply_integers(shape), stored = source_->stored_bytes(name);
    if (layer_ >= 0) checked_->block_bytes.back() += stored;
    checked_->held_bytes +=
        stored_ && stays(name) ? stored : n * static_cast<int64_t>(c10::elementSize(dtype_));
  }

  std::shared_ptr<const io::TensorSource> source_;
  Config cfg_;
  WeightMap map_;
  torch::ScalarType dtype_;
  torch::Device device_;
  std::string prefix_;
  std::shared_ptr<const io::MappedTensors> stored_;  // the source, where its blocks are used as they are
  bool copy_bytes_ = true;                           // and not where they lie
  std::vector<torch::Device> block_devices_;
  int64_t layer_ = -1;          // the block that is read
  Checked* checked_ = nullptr;  // while shapes are checked: tensors have a shape and no memory
};

/// True for a model of so many bytes that memory has room for; `budget` as in LoadOptions.
bool fits(int64_t n_bytes, std::optional<int64_t> budget) {
  constexpr double kOfFree = 0.85;  // the rest is for activations and caches
  if (budget) return n_bytes <= *budget;
  const auto free = free_memory();
  return !free || static_cast<double>(n_bytes) <= kOfFree * static_cast<double>(*free);
}

}  // namespace

std::string name_prefix(const io::TensorSource& source, const WeightMap& map) {
  for (const auto& prefix : map.prefixes)
    if (source.has(prefix + map.embed + ".weight")) return prefix;
  return map.prefixes.front();
}

std::string unembed_name(const io::TensorSource& source, const WeightMap& map) {
  for (const auto& name : map.unembed)
    if (source.has(name + ".weight")) return name + ".weight";
  return {};
}

Weights read_weights(std::shared_ptr<const io::TensorSource> source, const Architecture& architecture,
                     const LoadOptions& options) {
  WeightReader reader(std::move(source), architecture, options);
  auto checked = reader.check_shapes();
  const bool keeps_blocks =
      options.keep_blocks ? *options.keep_blocks : fits(checked.held_bytes, options.memory_budget);
  if (!keeps_blocks) reader.leave_in_file();
  auto weights = reader.read_outside();
  const int64_t n_layers = architecture.cfg.n_layers;
  if (!keeps_blocks) {
    const auto read = [reader](int64_t layer) {
      const at::NoGradGuard no_grad;
      return reader.block(layer);
    };
    weights.block_bytes = std::move(checked.block_bytes);
    weights.n_block_reads = std::make_shared<std::atomic<int64_t>>(0);
    const auto counted = [ahead = read_ahead(read, n_layers), n = weights.n_block_reads](int64_t layer) {
      ++*n;
      return ahead(layer);
    };
    weights.read_block = FileBlocks{counted, options.weights.value_or(WeightsHeld::kDense)};
    return weights;
  }
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    report(options.progress, "loading", layer, n_layers);
    weights.blocks.push_back(reader.block(layer));
  }
  report(options.progress, "loading", n_layers, n_layers);
  return weights;
}

}  // namespace introspect::models
