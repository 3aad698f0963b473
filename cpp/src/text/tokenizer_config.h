#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "text/added_vocabulary.h"
#include "text/tokenizer_class.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// What the files of a folder say of the vocabulary among them, read as transformers 5 reads it.
///
/// tokenizer_config.json, special_tokens_map.json, added_tokens.json (these two only where the first has no
/// added_tokens_decoder), chat_template.jinja, additional_chat_templates/, and of config.json and generation_config.json
/// the tokenizer's class and eos_token_id.
struct TokenizerConfig {
  bool present = false;  // one of the first three files is there
  TokenizerClass tokenizer_class = TokenizerClass::backend;
  std::optional<bool> legacy, add_prefix_space, add_bos_token, add_eos_token;
  bool split_special_tokens = false;    // special tokens are not looked for inside a text
  std::map<int64_t, AddedToken> added;  // by the id the file gives
  bool lists_added = false;  // they are added_tokens_decoder, which leaves out what tokenizer.json adds
  std::optional<std::vector<AddedToken>> extra;  // extra_special_tokens, or additional_special_tokens for it
  std::optional<std::string> chat_template;
  std::vector<int64_t> eos_token_ids;  // that end a generation

  /// Throws IoError for broken JSON and values of another type, ConfigError for what this library does not do.
  static TokenizerConfig read(const std::filesystem::path& folder);

  /// The text of a special token where no file gives it one. A file's null holds.
  void set_default(const std::string& name, const std::string& content);

  /// "bos_token", "eos_token" and the others with a text, in transformers' order: the seven it knows, then the model's own.
  std::vector<std::pair<std::string, AddedToken>> special_tokens() const;

  /// Adds to `vocabulary` what transformers adds: `in_json`, the added tokens of tokenizer.json with the ids it gives,
  /// then those of the config, the named ones and the extra ones. `additional`, of a tokenizer.model, stands for
  /// additional_special_tokens. Throws ConfigError if a token gets another id than its file gives.
  void add_tokens(AddedVocabulary& vocabulary, const std::vector<AddedToken>& in_json,
                  const std::vector<AddedToken>* additional = nullptr) const;

  /// Sets the vocabulary's bos, eos, pad, special tokens, stops and chat template. Call after Vocabulary::index.
  void apply(Vocabulary& vocabulary) const;

 private:
  void read_tokenizer_config(const std::filesystem::path& file, ClassHints& hints);
  void read_special_tokens_map(const std::filesystem::path& file);
  void read_added_tokens(const std::filesystem::path& file);
  void set_class_defaults();

  using Named = std::pair<std::string, AddedToken>;
  std::map<std::string, std::optional<AddedToken>> named_;  // of the seven; nullopt: a file's null
  std::vector<Named> own_before_, own_;  // the model's own, in two groups as transformers orders them
  std::optional<std::vector<AddedToken>> additional_;  // additional_special_tokens where that is not `extra`
};

/// eos and every token of the vocabulary that is known to end a turn or a text.
std::vector<int64_t> known_stops(const Vocabulary& vocabulary);

}  // namespace introspect::text
