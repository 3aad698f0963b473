#include "models/weight_reader.h"

#include "introspect/core/check.h"

#include "models/attention_options.h"

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
        prefix_(name_prefix(*source_, map_)) {}

  /// Compares every tensor's shape with the config's before any is read or its memory taken.
  void check_shapes() const {
    auto checking = *this;
    checking.is_check_ = true;
    checking.read_outside();
    for (int64_t layer = 0; layer < cfg_.n_layers; ++layer) checking.block(layer);
  }

  /// Everything but the blocks.
  Weights read_outside() const {
    const int64_t D = cfg_.d_model, V = cfg_.d_vocab;
    Weights w;
    w.W_E = tensor(prefix_ + map_.embed + ".weight", {V, D});
    if (!map_.pos_embed.empty()) w.W_pos = tensor(prefix_ + map_.pos_embed + ".weight", {cfg_.n_ctx, D});
    w.ln_final = norm(prefix_ + map_.ln_final, D, Point::kLnFinalScale, Point::kLnFinalNormalized);
    w.W_U = cfg_.tie_word_embeddings ? w.W_E : unembedding();
    if (cfg_.positional_embedding_type == "rotary" && !is_check_) read_frequencies(w);
    return w;
  }

  nn::Block block(int64_t layer) const {
    const auto at = [&](const std::string& pattern) {
      auto name = prefix_ + pattern;
      return name.replace(name.find("{}"), 2, std::to_string(layer));
    };
    const auto maybe_norm = [&](const std::string& pattern, int64_t width, Point scale, Point normalized) {
      return pattern.empty() ? std::nullopt : std::optional(norm(at(pattern), width, scale, normalized));
    };
    const int64_t D = cfg_.d_model, K = cfg_.d_head;
    auto attn = attention_options(cfg_, layer);
    attn.q_norm = maybe_norm(map_.q_norm, K, Point::kQNormScale, Point::kQNormNormalized);
    attn.k_norm = maybe_norm(map_.k_norm, K, Point::kKNormScale, Point::kKNormNormalized);
    return nn::Block(
        {.ln1 = norm(at(map_.ln1), D, Point::kLn1Scale, Point::kLn1Normalized),
         .attn = nn::Attention(attention(at), std::move(attn)),
         .ln1_post = maybe_norm(map_.ln1_post, D, Point::kLn1PostScale, Point::kLn1PostNormalized),
         .ln2 = norm(at(map_.ln2), D, Point::kLn2Scale, Point::kLn2Normalized),
         .mlp = nn::Mlp(mlp(at), ops::parse_activation(cfg_.act_fn)),
         .ln2_post = maybe_norm(map_.ln2_post, D, Point::kLn2PostScale, Point::kLn2PostNormalized),
         .parallel = cfg_.parallel_attn_mlp});
  }

 private:
  struct Part {
    std::string name;
    int64_t rows;
    bool interleaved = false;  // rows of each head in the order 0, K/2, 1, K/2 + 1, ...
  };

  template <typename At>
  nn::AttentionWeights attention(const At& at) const {
    const int64_t D = cfg_.d_model, HK = cfg_.n_heads * cfg_.d_head,
                  GK = cfg_.n_key_value_heads * cfg_.d_head;
    nn::AttentionWeights w;
    if (map_.qkv.empty()) {
      const std::vector<Part> parts = {{at(map_.q), HK, map_.interleaved_rotary},
                                       {at(map_.k), GK, map_.interleaved_rotary},
                                       {at(map_.v), GK}};
      w.W_QKV = fused(parts, ".weight", D);
      if (cfg_.qkv_bias) w.b_QKV = fused(parts, ".bias", 0);
    } else {
      w.W_QKV = by_kind(matrix(at(map_.qkv), HK + 2 * GK, D));
      if (cfg_.qkv_bias) w.b_QKV = by_kind(tensor(at(map_.qkv) + ".bias", {HK + 2 * GK}));
    }
    w.W_O = matrix(at(map_.o), D, HK);
    if (cfg_.attn_out_bias) w.b_O = tensor(at(map_.o) + ".bias", {D});
    return w;
  }

  template <typename At>
  nn::MlpWeights mlp(const At& at) const {
    const int64_t D = cfg_.d_model, M = cfg_.d_mlp;
    nn::MlpWeights w;
    if (!map_.gate.empty()) {
      const std::vector<Part> parts = {{at(map_.gate), M}, {at(map_.in), M}};
      w.W_in = fused(parts, ".weight", D);
      if (cfg_.mlp_bias) w.b_in = fused(parts, ".bias", 0);
    } else {
      const auto name = at(cfg_.gated_mlp ? map_.gate_in : map_.in);
      const int64_t rows = cfg_.gated_mlp ? 2 * M : M;
      w.W_in = matrix(name, rows, D);
      if (cfg_.mlp_bias) w.b_in = tensor(name + ".bias", {rows});
    }
    w.W_out = matrix(at(map_.out), D, M);
    if (cfg_.mlp_bias) w.b_out = tensor(at(map_.out) + ".bias", {D});
    return w;
  }

  nn::Norm norm(const std::string& name, int64_t width, Point scale, Point normalized) const {
    nn::Norm out;
    out.eps = cfg_.eps;
    out.scale_point = scale;
    out.normalized_point = normalized;
    if (cfg_.norm_weight_offset) {
      out.kind = nn::NormKind::kGemmaRms;
      out.weight = tensor(name + ".weight", {width}, torch::kFloat32);
      if (!map_.norms_hold_one_plus) out.weight = out.weight + 1;
    } else if (cfg_.normalization_type == "LN") {
      out.kind = nn::NormKind::kLayer;
      out.weight = tensor(name + ".weight", {width});
      out.bias = tensor(name + ".bias", {width});
    } else {
      out.weight = tensor(name + ".weight", {width});
    }
    return out;
  }

  torch::Tensor unembedding() const {
    auto name = unembed_name(*source_, map_);
    if (name.empty()) name = map_.unembed.front() + ".weight";  // for the error that names it
    return tensor(name, {cfg_.d_vocab, cfg_.d_model});
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

  torch::Tensor tensor(const std::string& name, const std::vector<int64_t>& sizes) const {
    return tensor(name, sizes, dtype_);
  }

  torch::Tensor tensor(const std::string& name, const std::vector<int64_t>& sizes,
                       torch::ScalarType dtype) const {
    check_tensor(name, sizes);
    if (is_check_) return at::empty(sizes, at::device(torch::kMeta).dtype(dtype));
    auto out = at::empty(sizes, dtype);
    source_->read_into(name, out);
    return out.to(device_);
  }

  /// A weight as [rows, columns], whichever way round the checkpoint keeps it.
  torch::Tensor matrix(const std::string& name, int64_t rows, int64_t columns) const {
    if (!map_.transposed) return tensor(name + ".weight", {rows, columns});
    return tensor(name + ".weight", {columns, rows}).t().contiguous();
  }

  /// The parts' rows one after another: [sum of rows, columns], or [sum of rows] for columns = 0.
  torch::Tensor fused(const std::vector<Part>& parts, const char* suffix, int64_t columns) const {
    const auto sizes = [&](int64_t rows) {
      return columns ? std::vector<int64_t>{rows, columns} : std::vector<int64_t>{rows};
    };
    int64_t rows = 0;
    for (const auto& part : parts) {
      check_tensor(part.name + suffix, sizes(part.rows));
      rows += part.rows;
    }
    if (is_check_) return at::empty(sizes(rows), at::device(torch::kMeta).dtype(dtype_));
    auto out = at::empty(sizes(rows), dtype_);
    int64_t row = 0;
    for (const auto& part : parts) {
      auto slice = out.narrow(0, row, part.rows);
      source_->read_into(part.name + suffix, slice);
      if (part.interleaved) slice.copy_(deinterleaved(slice));
      row += part.rows;
    }
    return out.to(device_);
  }

  torch::Tensor deinterleaved(const torch::Tensor& rows) const {
    const int64_t K = cfg_.d_head;
    return rows.reshape({rows.size(0) / K, K / 2, 2, -1}).transpose(1, 2).reshape(rows.sizes()).clone();
  }

  /// Rows of all queries, then of all keys, then of all values, where the checkpoint keeps them head by head.
  torch::Tensor by_kind(const torch::Tensor& qkv) const {
    if (!map_.qkv_by_head) return qkv;
    return qkv.view({cfg_.n_heads, 3, cfg_.d_head, -1}).transpose(0, 1).reshape(qkv.sizes());
  }

  void check_tensor(const std::string& name, at::IntArrayRef sizes) const {
    check<ConfigError>(source_->has(name), "model: the tensor '", name, "' is missing from the files of a ",
                       cfg_.original_architecture, " model");
    const auto shape = source_->shape(name);
    check<ShapeError>(sizes == at::IntArrayRef(shape), "model: the tensor '", name, "' must be ", sizes,
                      " by the config, got ", at::IntArrayRef(shape));
    source_->check_readable(name);
  }

  std::shared_ptr<const io::TensorSource> source_;
  Config cfg_;
  WeightMap map_;
  torch::ScalarType dtype_;
  torch::Device device_;
  std::string prefix_;
  bool is_check_ = false;  // tensors have a shape and no memory
};

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
  const WeightReader reader(std::move(source), architecture, options);
  reader.check_shapes();
  auto weights = reader.read_outside();
  if (!options.keep_blocks) {
    weights.read_block = [reader](int64_t layer) {
      const at::NoGradGuard no_grad;
      return reader.block(layer);
    };
    return weights;
  }
  const int64_t n_layers = architecture.cfg.n_layers;
  for (int64_t layer = 0; layer < n_layers; ++layer) {
    report(options.progress, "loading", layer, n_layers);
    weights.blocks.push_back(reader.block(layer));
  }
  report(options.progress, "loading", n_layers, n_layers);
  return weights;
}

}  // namespace introspect::models
