#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "text/tokenizer_engine.h"

namespace introspect::text {

/// What a tokenizer_config.json and a chat_template.jinja say of the vocabulary beside them.
struct TokenizerConfig {
  bool present = false;
  std::optional<std::string> bos_token, eos_token, pad_token;
  std::optional<bool> add_bos_token, add_eos_token;
  std::optional<std::string> chat_template;

  /// Nothing is set if the folder has neither file. Throws IoError for broken JSON.
  static TokenizerConfig read(const std::filesystem::path& folder);

  /// Sets the vocabulary's bos, eos, pad, stops, prefix, suffix and chat template. Call after Vocabulary::index.
  void apply(Vocabulary& vocabulary) const;
};

/// eos and every token of the vocabulary that is known to end a turn or a text.
std::vector<int64_t> known_stops(const Vocabulary& vocabulary);

}  // namespace introspect::text
