#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/hf_folder.h"
#include "introspect/models/model.h"
#include "models/architecture.h"

namespace introspect::models {

namespace {

/// Reads tensors into the fused form in which the layers use them, and says how far it is.
class WeightReader {
 public:
  WeightReader(const io::TensorSource& source, const Architecture& architecture, const LoadOptions& options)
      : source_(source), cfg_(architecture.cfg), map_(architecture.map), options_(options) {}

  Weights read() const {
    const int64_t D = cfg_.d_model;
    Weights w;
    w.W_E = tensor(map_.embed + ".weight", {cfg_.d_vocab, D});
    for (int64_t layer = 0; layer < cfg_.n_layers; ++layer) {
      report(options_.progress, "loading", layer, cfg_.n_layers);
      w.blocks.push_back(block(layer));
    }
    w.ln_final = norm(map_.ln_final, D, hooks::Point::kLnFinalScale, hooks::Point::kLnFinalNormalized);
    w.W_U = cfg_.tie_word_embeddings ? w.W_E : tensor(map_.unembed + ".weight", {cfg_.d_vocab, D});
    w.rotary_frequencies = ops::rotary_frequencies(cfg_.rotary_dim, cfg_.rotary_base, cfg_.rotary_scaling);
    if (!map_.rotary_factors.empty() && source_.has(map_.rotary_factors))
      w.rotary_frequencies = w.rotary_frequencies / source_.read(map_.rotary_factors, torch::kFloat32);
    w.rotary_frequencies = w.rotary_frequencies.to(options_.device);
    report(options_.progress, "loading", cfg_.n_layers, cfg_.n_layers);
    return w;
  }

 private:
  struct Part {
    std::string name;
    int64_t rows;
    bool interleaved = false;  // rows of each head in the order 0, K/2, 1, K/2 + 1, ...
  };

  nn::Block block(int64_t layer) const {
    const auto at = [&](const std::string& pattern) {
      auto name = pattern;
      return name.replace(name.find("{}"), 2, std::to_string(layer));
    };
    const int64_t D = cfg_.d_model, M = cfg_.d_mlp, K = cfg_.d_head;
    const int64_t HK = cfg_.n_heads * K, GK = cfg_.n_key_value_heads * K;
    const std::vector<Part> qkv = {{at(map_.q), HK, map_.interleaved_rotary},
                                   {at(map_.k), GK, map_.interleaved_rotary},
                                   {at(map_.v), GK}};
    const std::vector<Part> gate_in = {{at(map_.gate), M}, {at(map_.in), M}};
    nn::AttentionWeights attn_weights = {
        fused(qkv, ".weight", D), cfg_.qkv_bias ? fused(qkv, ".bias", 0) : torch::Tensor{},
        tensor(at(map_.o) + ".weight", {D, HK}),
        cfg_.attn_out_bias ? tensor(at(map_.o) + ".bias", {D}) : torch::Tensor{}};
    nn::MlpWeights mlp_weights = {fused(gate_in, ".weight", D),
                                  cfg_.mlp_bias ? fused(gate_in, ".bias", 0) : torch::Tensor{},
                                  tensor(at(map_.out) + ".weight", {D, M}),
                                  cfg_.mlp_bias ? tensor(at(map_.out) + ".bias", {D}) : torch::Tensor{}};
    nn::AttentionOptions attn_options;
    attn_options.n_heads = cfg_.n_heads;
    attn_options.n_key_value_heads = cfg_.n_key_value_heads;
    attn_options.d_head = K;
    attn_options.scale = cfg_.attn_scale;
    attn_options.soft_cap = cfg_.attn_scores_soft_cap;
    attn_options.local = cfg_.is_local(layer);
    return nn::Block({.ln1 = norm(at(map_.ln1), D, hooks::Point::kLn1Scale, hooks::Point::kLn1Normalized),
                      .attn = nn::Attention(std::move(attn_weights), std::move(attn_options)),
                      .ln1_post = {},
                      .ln2 = norm(at(map_.ln2), D, hooks::Point::kLn2Scale, hooks::Point::kLn2Normalized),
                      .mlp = nn::Mlp(std::move(mlp_weights), ops::parse_activation(cfg_.act_fn)),
                      .ln2_post = {},
                      .parallel = cfg_.parallel_attn_mlp});
  }

  nn::Norm norm(const std::string& name, int64_t width, hooks::Point scale, hooks::Point normalized) const {
    nn::Norm out;
    out.weight = tensor(name + ".weight", {width});
    out.eps = cfg_.eps;
    out.scale_point = scale;
    out.normalized_point = normalized;
    return out;
  }

  torch::Tensor tensor(const std::string& name, const std::vector<int64_t>& sizes) const {
    auto out = at::empty(sizes, options_.dtype);
    read_into(name, out);
    return out.to(options_.device);
  }

  /// The parts' rows one after another: [sum of rows, columns], or [sum of rows] for columns = 0.
  torch::Tensor fused(const std::vector<Part>& parts, const char* suffix, int64_t columns) const {
    int64_t rows = 0;
    for (const auto& part : parts) rows += part.rows;
    auto out = columns ? at::empty({rows, columns}, options_.dtype) : at::empty({rows}, options_.dtype);
    int64_t row = 0;
    for (const auto& part : parts) {
      auto slice = out.narrow(0, row, part.rows);
      read_into(part.name + suffix, slice);
      if (part.interleaved) slice.copy_(deinterleaved(slice));
      row += part.rows;
    }
    return out.to(options_.device);
  }

  torch::Tensor deinterleaved(const torch::Tensor& rows) const {
    const int64_t K = cfg_.d_head;
    return rows.reshape({rows.size(0) / K, K / 2, 2, -1}).transpose(1, 2).reshape(rows.sizes()).clone();
  }

  void read_into(const std::string& name, torch::Tensor& out) const {
    check<ConfigError>(source_.has(name), "model: the tensor '", name, "' is missing from the files of a ",
                       cfg_.original_architecture, " model");
    const auto shape = source_.shape(name);
    check<ShapeError>(out.sizes() == at::IntArrayRef(shape), "model: the tensor '", name, "' must be ",
                      out.sizes(), " by the config, got ", at::IntArrayRef(shape));
    source_.read_into(name, out);
  }

  const io::TensorSource& source_;
  const Config& cfg_;
  const WeightMap& map_;
  const LoadOptions& options_;
};

/// The chat template beside the tokenizer where it is one of the native formats.
std::optional<text::ChatTemplate> find_chat_template(const std::optional<text::Tokenizer>& tokenizer) {
  if (!tokenizer || !tokenizer->chat_template()) return std::nullopt;
  const auto spelled = [&](std::optional<int64_t> id) {
    return id ? tokenizer->id_to_token(*id) : std::string();
  };
  try {
    return text::ChatTemplate::from_jinja(*tokenizer->chat_template(), spelled(tokenizer->bos_token_id()),
                                          spelled(tokenizer->eos_token_id()));
  } catch (const ConfigError& error) {
    const std::string reason =
        error.what();  // said when the template is used, not by every model that is loaded
    return text::ChatTemplate(
        "unknown", [reason](const auto&, const auto&) -> std::string { throw ConfigError(reason); });
  }
}

std::string config_text(const Config& c) {
  return concat(c.original_architecture, " ", c.n_layers, " ", c.d_model, " ", c.n_heads, " ",
                c.n_key_value_heads, " ", c.d_head, " ", c.d_mlp, " ", c.d_vocab, " ", c.eps, " ",
                c.rotary_base, " ", c.rotary_scaling.type, " ", c.rotary_scaling.factor, " ",
                c.tie_word_embeddings);
}

}  // namespace

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  check<ConfigError>(options.dtype == torch::kFloat32 || options.dtype == torch::kBFloat16 ||
                         options.dtype == torch::kFloat64 || options.dtype == torch::kFloat16,
                     "Model::load: dtype must be float32, bfloat16, float16 or float64, got ", options.dtype);
  const at::NoGradGuard no_grad;
  std::shared_ptr<const io::TensorSource> source;
  std::optional<text::Tokenizer> tokenizer;
  Architecture architecture;
  if (std::filesystem::is_directory(path)) {
    const auto folder = io::HfFolder::open(path);
    const auto config = nlohmann::json::parse(folder.config_json, nullptr, /*allow_exceptions=*/false);
    check<IoError>(!config.is_discarded(), (path / "config.json").string(), ": not valid JSON");
    architecture = architecture_of_hf(config);
    // Checkpoints of tied models leave the unembedding out; one that is there is what the model was trained with.
    if (folder.weights->has("lm_head.weight")) architecture.cfg.tie_word_embeddings = false;
    source = folder.weights;
    tokenizer = text::Tokenizer::load_if_present(path);
  } else {
    const auto file = io::GgufFile::open(path);
    architecture = architecture_of_gguf(*file);
    source = file;
    tokenizer = text::Tokenizer::load_if_present(path);
  }
  auto& cfg = architecture.cfg;
  // The file's own name: what converters write into general.name is often another checkpoint's.
  cfg.model_name = (path.has_filename() ? path : path.parent_path()).stem().string();
  const auto hash = sha256_hex(config_text(cfg) + "\n" + source->fingerprint());
  auto weights = WeightReader(*source, architecture, options).read();
  auto chat_template = options.chat_template ? options.chat_template : find_chat_template(tokenizer);
  return std::make_shared<const Model>(cfg, std::move(weights), std::move(tokenizer),
                                       std::move(chat_template), hash);
}

}  // namespace introspect::models
