#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

#include "core/dense.h"
#include "core/dequantise.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/gguf.h"
#include "introspect/io/hf_folder.h"
#include "introspect/io/memory_tensors.h"
#include "introspect/models/find_model.h"
#include "introspect/models/model.h"
#include "io/json_file.h"
#include "models/architecture.h"
#include "models/check_device.h"
#include "models/weight_reader.h"

namespace introspect::models {

namespace {

/// Throws ConfigError for a device that this torch cannot use, or that holds no numbers.
void check_device(torch::Device device) {
  check_holds_numbers("Model::load", device);
  try {
    at::empty({1}, at::device(device));
  } catch (const c10::Error& error) {
    const std::string reason = error.what_without_backtrace();
    throw ConfigError(concat("Model::load: device '", device.str(),
                             "' cannot be used here: ", reason.substr(0, reason.find_first_of(".\n"))));
  }
}

bool is_as_stored(const LoadOptions& options) {
  return options.weights == WeightsHeld::kAsStored;
}

bool is_on_cpu(const LoadOptions& options) {
  return options.device.is_cpu() && std::all_of(options.block_devices.begin(), options.block_devices.end(),
                                                [](const auto& block) { return block.second.is_cpu(); });
}

void check_options(const LoadOptions& options) {
  check<ConfigError>(
      is_on_cpu(options) || !is_as_stored(options),
      "Model::load: quantised blocks are used as stored on the CPU only; give weights='dense' for ",
      options.device.is_cpu() ? "device_map" : options.device.str());
  check<ConfigError>(options.dtype == torch::kFloat32 || options.dtype == torch::kBFloat16 ||
                         options.dtype == torch::kFloat64 || options.dtype == torch::kFloat16,
                     "Model::load: dtype must be float32, bfloat16, float16 or float64, got ", options.dtype);
  check_device(options.device);
  for (const auto& [layer, device] : options.block_devices) check_device(device);
}

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

/// As stored, where that is possible, if the dense weights would take 8 GiB or more.
WeightsHeld default_weights(const io::GgufFile& file, const LoadOptions& options) {
  constexpr int64_t kLarge = int64_t{8} << 30;
  if (!is_on_cpu(options)) return WeightsHeld::kDense;
  int64_t n = 0;
  bool any = false;
  for (const auto& name : file.names()) {
    n += c10::multiply_integers(file.shape(name));
    any = any || find_quantisation(file.dtype(name)) != nullptr;
  }
  const bool large = n * static_cast<int64_t>(c10::elementSize(options.dtype)) >= kLarge;
  return any && large ? WeightsHeld::kAsStored : WeightsHeld::kDense;
}

/// What makes two models of equal tensors differ. What a plain Llama does not have is named only where it is there.
std::string config_text(const Config& c) {
  auto text =
      concat(c.original_architecture, " ", c.n_layers, " ", c.d_model, " ", c.n_heads, " ",
             c.n_key_value_heads, " ", c.d_head, " ", c.d_mlp, " ", c.d_vocab, " ", c.eps, " ", c.rotary_base,
             " ", c.rotary_scaling.type, " ", c.rotary_scaling.factor, " ", c.tie_word_embeddings);
  if (c.act_fn != "silu") text += concat(" act_fn ", c.act_fn);
  if (c.rotary_dim != c.d_head) text += concat(" rotary_dim ", c.rotary_dim);
  if (c.rotary_base_local > 0) text += concat(" rotary_base_local ", c.rotary_base_local);
  if (c.attn_scale != std::sqrt(static_cast<double>(c.d_head))) text += concat(" attn_scale ", c.attn_scale);
  if (c.attn_scores_soft_cap > 0) text += concat(" attn_scores_soft_cap ", c.attn_scores_soft_cap);
  if (c.output_logits_soft_cap > 0) text += concat(" output_logits_soft_cap ", c.output_logits_soft_cap);
  if (c.parallel_attn_mlp) text += " parallel_attn_mlp";
  if (const auto& s = c.rotary_scaling; s.type == "yarn" || s.type == "longrope" || s.type == "dynamic") {
    text += concat(" rope ", s.original_max_position, " ", s.attention_factor, " ", s.beta_fast, " ",
                   s.beta_slow, " ", s.truncate, " ", s.longest);
    for (const auto* factors : {&s.short_factor, &s.long_factor})
      for (const double factor : *factors) text += concat(" ", factor);
  }
  if (c.is_mixture())
    text += concat(" experts ", c.experts_per_token, " of ", c.num_experts, " ", c.norm_topk_prob);
  for (int64_t layer = 0; layer < c.n_layers; ++layer)
    if (c.is_local(layer)) text += concat(" window ", layer, " ", c.window_size);
  return text;
}

/// The longest text that the model takes, and with it the frequencies of those scalings that depend on it.
void set_length(Config& cfg, std::optional<int64_t> wanted) {
  auto& scaling = cfg.rotary_scaling;
  const bool is_dynamic = scaling.type == "dynamic", follows = is_dynamic || scaling.type == "longrope";
  if (!wanted && !follows) return;
  const int64_t before = std::min(static_cast<int64_t>(scaling.original_max_position), cfg.n_ctx);
  const int64_t n = wanted.value_or(before), most = is_dynamic ? kLargestSize - 1 : cfg.n_ctx;
  check<ConfigError>(n > 0 && n <= most, "Model::load: n_ctx must be from 1 to ", most,
                     " for this model, got ", n);
  check<ConfigError>(cfg.positional_embedding_type == "rotary" || n == cfg.n_ctx,
                     "Model::load: n_ctx must be ", cfg.n_ctx,
                     ", as many as there are learned positions, got ", n);
  cfg.n_ctx = n;
  if (follows) scaling.longest = static_cast<double>(n);
}

std::shared_ptr<const Model> assemble(std::shared_ptr<const io::TensorSource> source,
                                      Architecture architecture, std::optional<text::Tokenizer> tokenizer,
                                      const LoadOptions& options) {
  set_length(architecture.cfg, options.n_ctx);
  // Checkpoints of tied models leave the unembedding out; one that is there is what the model was trained with.
  if (!unembed_name(*source, architecture.map).empty()) architecture.cfg.tie_word_embeddings = false;
  const auto packing = architecture.packing ? " " + architecture.packing->text() : std::string();
  const auto hash = sha256_hex(config_text(architecture.cfg) + packing + "\n" + source->fingerprint());
  auto weights = read_weights(std::move(source), architecture, options);
  auto chat_template = options.chat_template ? options.chat_template : find_chat_template(tokenizer);
  return std::make_shared<const Model>(std::move(architecture.cfg), std::move(weights), std::move(tokenizer),
                                       std::move(chat_template), hash);
}

}  // namespace

WeightsHeld parse_weights_held(const std::string& word) {
  if (word == "dense") return WeightsHeld::kDense;
  check<ConfigError>(word == "as stored", "Model::load: weights must be 'dense' or 'as stored', got '", word,
                     "'");
  return WeightsHeld::kAsStored;
}

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path_or_name,
                                         const LoadOptions& options) {
  check_options(options);
  const auto path = find_model(path_or_name);
  const at::NoGradGuard no_grad;
  std::shared_ptr<const io::TensorSource> source;
  Architecture architecture;
  std::optional<text::Tokenizer> tokenizer;
  auto how = options;
  // Of other memory than the host's it is not known how much is free.
  if (!is_on_cpu(options) && !options.keep_blocks) how.keep_blocks = true;
  if (std::filesystem::is_directory(path)) {
    const auto folder = io::HfFolder::open(path);
    architecture = architecture_of_hf(io::parse_json_object(folder.config_json, path / "config.json"),
                                      static_cast<int64_t>(folder.weights->names().size()));
    check<ConfigError>(!is_as_stored(options), "Model::load: weights='as stored' is for GGUF files; ",
                       path.string(), " is a folder");
    architecture.cfg.eos_token_ids = text::eos_token_ids_of(path);
    tokenizer = text::Tokenizer::load_if_present(path);
    source = folder.weights;
    if (architecture.packing) source = io::unpacked(source, *architecture.packing);
  } else {
    const auto file = io::GgufFile::open(path);
    architecture = architecture_of_gguf(*file);
    if (file->has_key("tokenizer.ggml.model")) tokenizer = text::Tokenizer::from_gguf(*file);
    file->let_go_metadata();
    source = file;
    if (!options.weights) how.weights = default_weights(*file, options);
  }
  // The file's own name: what converters write into general.name is often another checkpoint's.
  architecture.cfg.model_name = (path.has_filename() ? path : path.parent_path()).stem().string();
  return assemble(std::move(source), std::move(architecture), std::move(tokenizer), how);
}

std::shared_ptr<const Model> Model::from_tensors(const std::string& config_json,
                                                 std::map<std::string, torch::Tensor> tensors,
                                                 const std::optional<std::filesystem::path>& tokenizer_path,
                                                 const LoadOptions& options) {
  check_options(options);
  check<ConfigError>(!is_as_stored(options),
                     "Model::from_tensors: tensors are dense; weights='as stored' is for GGUF");
  check<ConfigError>(options.keep_blocks.value_or(true),
                     "Model::from_tensors: blocks can stay in files, not in tensors; keep_blocks");
  const at::NoGradGuard no_grad;
  const auto config =
      parse_json<ConfigError>(config_json, "Model::from_tensors: config_json", io::kPythonJson);
  auto architecture = architecture_of_hf(config, static_cast<int64_t>(tensors.size()));
  const auto word = [&](const char* key) {
    const auto found = config.find(key);
    return found != config.end() && found->is_string() ? found->get<std::string>() : std::string();
  };
  const std::filesystem::path origin = word("_name_or_path");
  architecture.cfg.model_name = origin.empty() ? word("model_type") : origin.filename().string();

  for (const auto& [name, tensor] : tensors)
    check_dense<ShapeError>(tensor, "Model::from_tensors: '", name, "'");
  // A state dict holds a tied tensor under both its names, a checkpoint under the embedding's.
  const auto& map = architecture.map;
  for (const auto& prefix : map.prefixes) {
    const auto embed = tensors.find(prefix + map.embed + ".weight");
    for (const auto& unembed : map.unembed) {
      const auto other = tensors.find(unembed + ".weight");
      if (embed != tensors.end() && other != tensors.end() &&
          other->second.sizes() == embed->second.sizes() &&
          other->second.const_data_ptr() == embed->second.const_data_ptr())
        tensors.erase(other);
    }
  }
  check<ConfigError>(!architecture.packing, "Model::from_tensors: config_json says that weights are packed (",
                     architecture.packing ? architecture.packing->text() : std::string(),
                     "), which is read from files only");
  auto source = std::make_shared<const io::MemoryTensors>(std::move(tensors));
  auto tokenizer = tokenizer_path ? std::optional(text::Tokenizer::load(*tokenizer_path)) : std::nullopt;
  auto how = options;
  how.keep_blocks = true;
  return assemble(std::move(source), std::move(architecture), std::move(tokenizer), how);
}

}  // namespace introspect::models
