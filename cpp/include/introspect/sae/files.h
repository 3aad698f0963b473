#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/sae/cross_layer_transcoder.h"
#include "introspect/sae/dictionary.h"

namespace introspect::sae {

/// How a dictionary is read, and what its file does not say.
struct LoadOptions {
  std::string format;                      ///< one of dictionary_formats(); empty: found out by what is there
  std::optional<torch::ScalarType> dtype;  ///< that of the stored decoder, if not given
  torch::Device device = torch::kCPU;
  std::optional<int64_t> layer;       ///< of a folder with a file for each layer
  std::optional<int64_t> k;           ///< of top-k files that do not say it
  std::optional<double> input_scale;  ///< of files whose inputs were scaled by a number that they do not say
  DictionaryOrigin origin;            ///< stands where the file says nothing
};

/// Names of the formats that are read, each with what its file or folder holds: "gemma_scope: params.npz", ...
INTROSPECT_EXPORT std::vector<std::string> dictionary_formats();

/// Reads a dictionary of any format, from its file or folder. Nothing in it is executed.
///
/// Weights come feature by feature whatever way round the format has them; scales that a format leaves to its reader are
/// folded in, so that the dictionary reads the model's own activations. Where it was trained, and all that the file says
/// of itself, is in its origin.
/// Throws IoError for a file that is missing or damaged, whose tensors do not fit one another, are missing, too many or
/// not finite, and ConfigError for an unknown format, architecture or activation and for numbers that are neither in the file nor
/// among the options.
INTROSPECT_EXPORT Dictionary load_dictionary(const std::filesystem::path& path,
                                             const LoadOptions& options = {});

/// The layers of a folder that holds a file for each; empty for every other path.
INTROSPECT_EXPORT std::vector<int64_t> dictionary_layers(const std::filesystem::path& folder);

/// Reads a cross-layer transcoder from its folder: circuit-tracer's (W_enc_0.safetensors, W_dec_0.safetensors, .. and
/// config.yaml) or Gemma Scope 2's (params_layer_0.safetensors, ..; what it holds of layers below the reader's is no part of
/// it). Throws as load_dictionary.
INTROSPECT_EXPORT CrossLayerTranscoder load_cross_layer_transcoder(const std::filesystem::path& folder,
                                                                   const LoadOptions& options = {});

/// Writes one as circuit-tracer has it. Throws ConfigError for what that format cannot hold (a skip, an activation but relu
/// and jumprelu) and IoError.
INTROSPECT_EXPORT void save_cross_layer_transcoder(const CrossLayerTranscoder& transcoder,
                                                   const std::filesystem::path& folder);

/// What a dictionary is written as.
enum class DictionaryFormat : uint8_t {
  saelens,  ///< a folder of its own: sae_weights.safetensors, cfg.json
  circuit_tracer,  ///< layer_<n>.safetensors in a folder of one transcoder a layer, and the config.yaml of all of them
};

/// Writes a dictionary, each file whole or not at all, the description last.
///
/// SAELens 6 reads what it has an architecture for; others (groupmax, top-k of signed values or of a transcoder,
/// crosscoders) carry names that it refuses. An input scale is folded in, a decoder norm where the format has no room for it.
/// Throws ConfigError for what a format cannot hold and for a folder of another model or of other hook points, and IoError.
INTROSPECT_EXPORT void save_dictionary(const Dictionary& dictionary, const std::filesystem::path& folder,
                                       DictionaryFormat format = DictionaryFormat::saelens);

}  // namespace introspect::sae
