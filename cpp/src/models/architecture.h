#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "introspect/io/gguf.h"
#include "introspect/models/config.h"
#include "io/packed_tensors.h"

namespace introspect::models {

/// Where a checkpoint keeps the router and the experts of a layer: each expert by itself ("{e}" stands for its number), or
/// all in one tensor, [E, M, D] for gate and in and [E, D, M] for out.
struct ExpertNames {
  std::string router = {}, gate = {}, in = {}, out = {};
  std::string gate_in = {};                                      // instead of gate and in: [E, 2M, D]
  std::string weight_suffix = ".weight", bias_suffix = ".bias";  // of experts; a router's are always these
  bool transposed = false;                                       // gpt-oss: [E, D, 2M] and [E, M, D]
  bool interleaved = false;                                      // gpt-oss: the rows of gate and in alternate
};

/// Where a checkpoint keeps each tensor; "{}" stands for the layer's number. Empty: the family has no such tensor.
///
/// Names come without ".weight" and ".bias". What a checkpoint holds in one tensor and the layers in one product is
/// named once: qkv instead of q, k and v, and gate_in instead of gate and in.
struct WeightMap {
  /// What stands before every name but the unembedding's, where checkpoints of a family differ: the first that fits.
  std::vector<std::string> prefixes = {""};

  std::string embed, pos_embed, ln_final;
  std::vector<std::string> unembed;  // the first that is there
  std::string ln1, ln1_post, ln2, ln2_post, q_norm, k_norm;
  std::string q, k, v, qkv, o;
  std::string gate, in, gate_in, out;
  std::vector<ExpertNames> experts;  // instead of these: the first whose `out` is there
  std::string sinks;                 // with its suffix

  bool transposed = false;           // GPT-2 keeps its matrices as [in, out]
  bool qkv_by_head = false;          // GPT-NeoX keeps the rows of q, k and v of one head together
  bool norms_hold_one_plus = false;  // llama.cpp's converter has added Gemma's 1 to the norms' weights

  /// llama.cpp's converter interleaves the rows of q and k of llama files, for RoPE on neighbouring pairs.
  bool interleaved_rotary = false;

  /// Factors that divide the rotary frequencies (llama3 scaling in GGUF files); optional in the file.
  std::string rotary_factors;
};

/// The window of a model whose GGUF file does not say, told by its sizes; 0 stands for any.
struct DefaultWindow {
  int64_t n_layers = 0, n_key_value_heads = 0, n_ctx = 0;
  int64_t window = 0;
};

/// What the models of one family have in common, whatever their sizes, and the word each format has for them.
struct Family {
  std::string hf;          // config.json "architectures"
  std::string model_type;  // config.json "model_type"
  std::string gguf;        // general.architecture
  Config common =
      {};  // the fields that the family fixes, and the defaults of those that GGUF files may leave out

  /// The fields of config.json that the family's class in transformers 5 has, with that class's defaults, as JSON. Null
  /// is the default of what follows from other fields. Others that a file holds change nothing there, nor here.
  const char* hf_defaults = "{}";

  /// Which layers see a window where the file gives its size: 1: all, n: all but each n-th, 0: the file has to say, or
  /// none. A llama GGUF file that gives one is Mistral's.
  int64_t hf_window_period = 0, gguf_window_period = 0;

  /// Windows of GGUF files that were written before their size was, by llama.cpp's src/llama-model.cpp.
  std::vector<DefaultWindow> gguf_windows = {};

  bool layers_have_own_ropes =
      false;  // config.json may give layers with a window a set of rope parameters of their own
  bool embed_scaled_by_width = false;  // Gemma multiplies the embedding by sqrt(d_model)

  /// The largest model of Gemma 2 and 3 divides its scores by sqrt(d_model / n_heads), which GGUF files do not say:
  /// the number of its layers.
  int64_t layers_scaled_by_width = 0;

  WeightMap hf_names = {}, gguf_names = {};
};

/// The families this library reads.
const std::vector<Family>& families();

struct Architecture {
  Config cfg;
  WeightMap map;
  std::optional<io::Packing> packing = {};  // of matrices that are stored as whole numbers
};

/// From config.json, beside files of `n_tensors` tensors. Throws ConfigError for an architecture or option that is not
/// supported, and for fields that cannot be true.
Architecture architecture_of_hf(const nlohmann::json& config, int64_t n_tensors);

/// From a GGUF file's metadata. Throws ConfigError likewise.
Architecture architecture_of_gguf(const io::GgufFile& file);

}  // namespace introspect::models
