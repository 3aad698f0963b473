#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/cache/kv_cache.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/models/config.h"
#include "introspect/nn/block.h"
#include "introspect/text/chat.h"
#include "introspect/text/tokenizer.h"

namespace introspect::models {

class Adapter;

/// The tensors of a model, in the form in which the layers use them.
struct Weights {
  nn::Linear W_E;       // [V, D], whose rows are the tokens'
  torch::Tensor W_pos;  // [n_ctx, D]; undefined with rotary positions
  std::vector<nn::Block> blocks;
  std::function<nn::Block(int64_t layer)> read_block;   // instead of `blocks`, where they stay in their files
  std::vector<int64_t> block_bytes;                     // of the files that each takes then; otherwise empty
  std::shared_ptr<std::atomic<int64_t>> n_block_reads;  // counts them, where they stay in their files
  std::vector<torch::Device> block_devices;             // of each block; empty: W_E's
  nn::Norm ln_final;
  nn::Linear W_U;                    // [V, D], one row a token; it shares W_E's weight where they are tied
  torch::Tensor b_U;                 // [V]; undefined unless weights were processed
  torch::Tensor rotary_frequencies;  // float32 [rotary_dim / 2]; undefined without rotary positions
  torch::Tensor rotary_frequencies_local;  // of the layers with a window, if theirs differ
  bool is_processed = false;               // by models/process_weights.h: no longer the checkpoint's own
};

/// How matrices that a file holds quantised are held.
enum class WeightsHeld : uint8_t { kDense, kAsStored };

/// "dense" or "as stored". Throws ConfigError for another word.
INTROSPECT_EXPORT WeightsHeld parse_weights_held(const std::string& word);

/// How a model is read from its files.
struct LoadOptions {
  torch::ScalarType dtype = torch::kFloat32;
  torch::Device device = torch::kCPU;
  std::optional<text::ChatTemplate> chat_template;  // instead of the one found beside the weights

  /// Where single blocks live, with their keys and values; all else, the embedding and the unembedding too, lives on
  /// `device`.
  std::map<int64_t, torch::Device> block_devices;

  /// The longest text, instead of what the files say: shorter than that saves nothing but is checked. Where rotary
  /// frequencies depend on the text's length (longrope, dynamic) they are those of a text of this length, for every text;
  /// left out, it is the length before scaling. Throws ConfigError for more positions than the model has.
  std::optional<int64_t> n_ctx;

  /// False: blocks stay in the files; each is read when it runs and dropped after it, so that the models of one
  /// experiment, or a model and its activations, need not fit into memory together. The files must stay as they are:
  /// what is read of a file that was changed or cut is an IoError, and one cut while it is read ends the process. Left
  /// out: false where all is on the CPU and the model would take more than `memory_budget`.
  std::optional<bool> keep_blocks;

  /// Bytes of memory that a model may take before its blocks stay in the files; left out: 85 % of what this process can
  /// have, by the host and the control groups around it (of a container, a job); any number where nothing tells.
  std::optional<int64_t> memory_budget;

  /// How quantised matrices of a GGUF file are held: dense in `dtype`, or as the blocks that they are in the file, whose
  /// values products unpack on the way (ops/quantised_rows.h). Blocks take a quarter of the memory or less and cannot be
  /// trained. Left out: kAsStored on the CPU where dense weights would take 8 GiB or more, otherwise kDense. Throws
  /// ConfigError for kAsStored of a file that has none, or on another device than the CPU.
  std::optional<WeightsHeld> weights;
  Progress progress;
};

/// Where logits are wanted.
enum class LogitsAt {
  kAll,        // every position: computed in the model's dtype, as transformers does
  kLast,       // the last real position of each row: a readout in float32
  kNone,       // nowhere: the unembedding is not run
  kPositions,  // ForwardOptions::positions: a readout in float32
};

/// One forward pass.
///
/// With `parents` the tokens [1, T] are nodes of a token tree: each sees itself and its ancestors only, at the position
/// of its depth. parents[t] counts the cache's positions, which are the path from the root, and then this pass's
/// tokens, of which it must come before t; -1 for a root. The cache then holds nodes, not a
/// text: KVCache::select_positions makes the path to one of them.
struct ForwardOptions {
  cache::KVCache* cache = nullptr;             // continued and appended to
  const hooks::HookRegistry* hooks = nullptr;  // what to read and change on the way
  torch::Tensor attention_mask;  // bool [B, T], false for padding on either side; undefined: no padding
  std::optional<int64_t>
      n_prompt;  // positions from the cache's start that are the prompt; without a cache, all are
  torch::Tensor
      history;  // int64 [B, S]: the tokens that the cache holds, for text filters; undefined: not known
  LogitsAt logits_at = LogitsAt::kAll;
  torch::Tensor positions;  // int64 [N]: positions of this pass, for kPositions
  torch::Tensor vocab_ids;  // int64 [n]: only these rows of the vocabulary; undefined: all of them
  torch::Tensor parents;    // int64 [T]: the tokens are nodes of a tree, see below; undefined: a text
  std::optional<int64_t> start_at_layer;  // the input is the residual before this block, not tokens
  std::optional<int64_t> stop_at_layer;   // run the blocks before this one only, and return the residual
};

/// A decoder-only transformer: immutable weights, a Config and, where its files hold one, a tokenizer.
///
/// `forward` is const and may run in several threads at once.
class INTROSPECT_EXPORT Model {
 public:
  /// Reads a Hugging Face folder, a .gguf file or the file of a short name (models/find_model.h). Nothing in it is
  /// executed.
  ///
  /// Throws IoError for files that are missing or damaged, ConfigError for an architecture, quantisation or option
  /// that is not supported, ShapeError for a tensor whose shape contradicts the config.
  static std::shared_ptr<const Model> load(const std::filesystem::path& path_or_name,
                                           const LoadOptions& options = {});

  /// The same from tensors in memory: the config.json and the state dict of a transformers model. No file is written.
  ///
  /// Weights are copied. tokenizer_path: an HF folder, a tokenizer file or a .gguf; none: a model without text.
  /// Throws as load.
  static std::shared_ptr<const Model> from_tensors(
      const std::string& config_json, std::map<std::string, torch::Tensor> tensors,
      const std::optional<std::filesystem::path>& tokenizer_path = {}, const LoadOptions& options = {});

  Model(Config cfg, Weights weights, std::optional<text::Tokenizer> tokenizer,
        std::optional<text::ChatTemplate> chat_template, std::string hash);

  const Config& cfg() const { return cfg_; }

  /// What lies in memory: no blocks where they stay in the files (models/whole_weights.h refuses these).
  const Weights& weights() const;
  const nn::Norm& ln_final() const { return weights_.ln_final; }

  /// A block, which lives as long as the pointer where blocks stay in the files, and as long as the model otherwise.
  std::shared_ptr<const nn::Block> block(int64_t layer) const;
  bool keeps_blocks() const { return !weights_.read_block; }

  /// Bytes of the files that a block is read from, each time that it runs; 0 where blocks are in memory.
  int64_t bytes_read(int64_t layer) const {
    return weights_.block_bytes.empty() ? 0 : weights_.block_bytes.at(static_cast<size_t>(layer));
  }

  /// How many blocks have been read from the files to be run since the model was loaded, by it and all models made of it.
  int64_t n_block_reads() const { return weights_.n_block_reads ? weights_.n_block_reads->load() : 0; }
  torch::ScalarType dtype() const { return weights_.W_E.dtype(); }
  torch::Device device() const { return weights_.W_E.device(); }  ///< of tokens, the embedding and logits
  torch::Device device(int64_t layer) const {
    return weights_.block_devices.empty() ? device() : weights_.block_devices.at(static_cast<size_t>(layer));
  }

  /// Identity of the checkpoint: hex SHA-256 of its config and of a sample of every stored tensor. It does not
  /// depend on the dtype or device it was loaded to.
  const std::string& hash() const { return hash_; }

  /// Every tensor once, in the form in which the layers use it: "embed.W_E", "blocks.3.attn.W_QKV"; an adapter's too
  /// ("blocks.3.attn.A_QKV.0").
  ///
  /// They are the live weights: never to be written to, but requires_grad_() on one makes a forward pass differentiable
  /// in it. Weights in quantised blocks are no tensors: ConfigError if there are any, unless they are to be skipped.
  std::vector<std::pair<std::string, torch::Tensor>> named_weights(bool skip_quantised = false) const;

  /// The names, as in named_weights, of the weights that are held in quantised blocks.
  std::vector<std::string> quantised_weights() const;

  int64_t n_params() const;
  int64_t nbytes() const;  ///< in memory: without blocks that stay in the files

  /// A model of other weights with this one's tokenizer and chat template: what edits of a model return.
  std::shared_ptr<const Model> derived(Config cfg, Weights weights, std::string hash) const;

  /// This model with a LoRA adapter in effect, `scale` times as strong as it was trained; what is not the adapter's is
  /// shared. Adapters add up. The hash is another one; with a scale of 0 the model is as it was, hash included.
  ///
  /// The adapter's products are computed in float32, as in peft, or in float64 for a float64 model. Blocks that stay in
  /// their files do so. Throws ConfigError for an adapter of another model (other layers or modules than its own
  /// config asks for), for a family that has no weight map, and for processed weights, which LoRA was not trained on;
  /// ShapeError for matrices of other sizes; std::invalid_argument for a scale that is not finite.
  std::shared_ptr<const Model> with_adapter(const Adapter& adapter, double scale = 1) const;

  /// Throws ConfigError if the model's files held no tokenizer (or no chat template that is understood).
  const text::Tokenizer& tokenizer() const;
  const text::ChatTemplate& chat_template() const;
  bool has_tokenizer() const { return tokenizer_.has_value(); }
  bool has_chat_template() const { return chat_template_.has_value(); }

  /// The token ids of `text`, [1, T], with the tokenizer's BOS in front unless the text begins with it.
  torch::Tensor to_tokens(const std::string& text) const;

  /// Logits for tokens int64 [B, T], on any device; with start_at_layer for a residual [B, T, D] in the model's dtype.
  ///
  /// Returns [B, T, V] (kAll), [B, 1, V] (kLast), [B, N, V] (kPositions), V being the number of vocab_ids if given:
  /// float32, or float64 for a float64 model; an undefined tensor for kNone; with stop_at_layer the residual
  /// [B, T, D] before that block. kLast and kPositions are readouts unless something after the last block may be
  /// changed, which then changes what kAll computes. Hooks that need gradients make the embedding (or the residual given) the leaf
  /// of a graph; otherwise no graph is built unless a weight or an intervention requires one.
  /// Logits that are not finite are returned as they are: check_finite (models/finite.h) makes an error of them.
  /// Throws std::out_of_range for token ids or positions outside their range, ShapeError for wrong shapes or more than
  /// n_ctx positions, HookError for hooks that need gradients while they are switched off, or more of the text than is
  /// known.
  torch::Tensor forward(const torch::Tensor& input, const ForwardOptions& options = {}) const;

  /// Logits of residuals [..., D] after the last block, with the final norm and the unembedding in float32.
  ///
  /// vocab_ids int64 [n] restricts them to these tokens; undefined means all. Returns [..., V] or [..., n].
  torch::Tensor readout(const torch::Tensor& resid, const torch::Tensor& vocab_ids = {}) const;

  /// The residual before the first block [B, T, D] of tokens [B, T] at positions [B, T], int64 on the model's device.
  torch::Tensor embed(const torch::Tensor& tokens_BT, const torch::Tensor& positions_BT,
                      const nn::Context& ctx = {}) const;

  /// Cosines and sines of positions [B, T], int64 on the model's device; undefined where nothing is rotated. `local`: for
  /// layers with a window.
  std::pair<torch::Tensor, torch::Tensor> rotary_angles(const torch::Tensor& positions_BT, bool local) const;

  /// What attention knows of nodes of a token tree: the positions int64 [T] of those that are run, and the parents of
  /// all keys, int32 [S] on the CPU (ops::AttentionMask). `local`: for layers with a window.
  nn::Positions positions_in_tree(const torch::Tensor& depths_T, const torch::Tensor& parents_S,
                                  bool local) const;

  /// An empty cache that fits this model, or passes that stop at a layer.
  cache::KVCache make_cache(int64_t batch, std::optional<int64_t> stop_at_layer = {}) const;

  /// A registry for this model's hook points.
  hooks::HookRegistry make_hooks() const { return hooks::HookRegistry(hook_points(cfg_)); }

 private:
  void check_input(const torch::Tensor& input, const ForwardOptions& options) const;
  nn::Positions positions(const torch::Tensor& positions_BT, const torch::Tensor& real_BS, int64_t n_keys,
                          bool local) const;
  torch::Tensor logits(const torch::Tensor& resid_BTD, const ForwardOptions& options,
                       const nn::Context& ctx) const;
  nn::Linear unembedding(const torch::Tensor& vocab_ids, torch::ScalarType type) const;
  torch::Tensor hooked_logits(const torch::Tensor& resid_BTD, const torch::Tensor& vocab_ids,
                              const nn::Context& ctx) const;

  Config cfg_;
  Weights weights_;
  std::optional<text::Tokenizer> tokenizer_;
  std::optional<text::ChatTemplate> chat_template_;
  std::string hash_;
};

}  // namespace introspect::models
