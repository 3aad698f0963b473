#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "introspect/sae/dictionary.h"
#include "introspect/sae/files.h"

#include "sae/formats/tensors.h"

namespace introspect::sae::formats {

/// A file or folder that is about to be read.
struct Found {
  std::filesystem::path path;    // as it was asked for
  std::filesystem::path folder;  // itself, or where the file lies
  const LoadOptions& options;
  Tensors tensors;

  /// The object in a JSON file of the folder; null where there is none. Throws IoError for a damaged one.
  nlohmann::json json(const std::string& name) const;
  bool has_file(const std::string& name) const;
  /// Whether a part of the path holds `text`: names of repositories say what their files do not.
  bool mentions(const std::string& text) const { return where().find(text) != std::string::npos; }
  std::string where() const { return std::filesystem::absolute(tensors.path()).generic_string(); }
  /// The number after `prefix` in the path, the last such one: layer_12.
  std::optional<int64_t> number_after(const std::string& prefix) const;
};

/// What a reader makes of a file, before dtype, device and checks, which all have in common.
struct Parts {
  DictionaryConfig config;
  DictionaryWeights weights;
  DictionaryOrigin origin;
  bool has_relu = true;  // jumprelu whose formula has a relu as well: no threshold below 0 acts
};

/// A format: its name, what it consists of, how it is known and how it is read.
struct Format {
  std::string name, holds;
  bool (*is_it)(const Found& found);
  Parts (*read)(Found& found);
};

// One of each in a file of its name; `formats` has them in the order in which they are tried.
extern const Format kSaelens, kGemmaScope, kGemmaScope2, kLlamaScope, kLlamaScopeDistill, kQwenScope,
    kDictionaryLearning, kSparsify, kOpenai, kCircuitTracer, kGoodfire, kCkkissane, kTinystories;
std::vector<const Format*> formats();

/// An activation of one width that is both read and written.
void set_site(DictionaryOrigin& origin, const std::string& hook_name, int64_t width);
/// A transcoder's two.
void set_sites(DictionaryOrigin& origin, const std::string& hook_in, int64_t d_in,
               const std::string& hook_out, int64_t d_out);

/// "blocks.3.hook_resid_post"
std::string block_hook(int64_t layer, const std::string& point);

/// Hook point of a transformers module's input or output: "model.layers.3.output" is blocks.3.hook_resid_post. Empty if
/// it is none that is known.
std::string hook_of_module(const std::string& module);

/// A folder of the circuit-tracer format as its config.yaml describes it.
struct TranscoderSet {
  std::string model_name, model_kind, input_hook, output_hook, scan, activation;
  std::optional<int64_t> k;
  std::vector<std::string> files;
};
/// Throws IoError for a file that is not plain keys and one list.
TranscoderSet read_transcoder_set(const std::filesystem::path& config);

void save_as_saelens(const Dictionary& dictionary, const std::filesystem::path& folder);
void save_as_circuit_tracer(const Dictionary& dictionary, const std::filesystem::path& folder);

}  // namespace introspect::sae::formats
