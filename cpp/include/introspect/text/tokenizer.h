#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "introspect/export.h"

namespace introspect::io {
class GgufFile;
}

namespace introspect::text {

class TokenizerEngine;

/// Text to token ids and back, as the model's own tokenizer does it.
///
/// A value: copies share one immutable vocabulary, and every method may be called from several threads at once.
/// Special tokens written inside a text ("<|im_start|>") become their own ids, as in transformers and llama.cpp.
class INTROSPECT_EXPORT Tokenizer {
 public:
  /// Reads a tokenizer.json, a tokenizer.model, a folder that holds one of them, or the vocabulary of a .gguf file.
  ///
  /// A folder's tokenizer.json is preferred to its tokenizer.model. What stands beside either counts as in transformers 5:
  /// tokenizer_config.json, added_tokens.json and special_tokens_map.json (added and special tokens, the class and its
  /// settings), chat_template.jinja, and eos_token_id of generation_config.json or config.json. A tokenizer.model with
  /// none of the first three encodes exactly as sentencepiece does, with <s> in front, and its control tokens are not
  /// recognised inside a text. A .gguf file is read as llama.cpp reads it.
  /// Throws IoError for a file that is missing or broken and ConfigError, naming the field, for what this library does
  /// not have.
  static Tokenizer load(const std::filesystem::path& path);

  /// As `load`, but nullopt for a folder (or GGUF file) that holds no tokenizer.
  static std::optional<Tokenizer> load_if_present(const std::filesystem::path& path);

  /// The vocabulary of an open GGUF file: `tokenizer.ggml.model` "gpt2" (byte-level BPE) or "llama" (SentencePiece).
  static Tokenizer from_gguf(const io::GgufFile& file);

  /// The ids of `text`, with the tokens the model expects around it (usually <bos>) if `add_special_tokens`.
  ///
  /// Throws ConfigError for text that is not UTF-8, with the position of the first bad byte.
  std::vector<int64_t> encode(std::string_view text, bool add_special_tokens = true) const;

  /// The text of `ids`. Bytes that are not UTF-8 become U+FFFD. Throws std::out_of_range for an id without a token.
  std::string decode(std::span<const int64_t> ids, bool skip_special_tokens = false) const;
  std::string decode(std::initializer_list<int64_t> ids, bool skip_special_tokens = false) const;

  /// One more than the highest id.
  int64_t vocab_size() const;
  /// The token as the vocabulary file spells it ("Ġcat", "▁cat", "<0x0A>"). Throws std::out_of_range.
  std::string id_to_token(int64_t id) const;
  std::optional<int64_t> token_to_id(std::string_view token) const;

  std::optional<int64_t> bos_token_id() const;
  std::optional<int64_t> eos_token_id() const;
  std::optional<int64_t> pad_token_id() const;
  /// Whether `encode` puts bos_token_id() first.
  bool adds_bos() const;
  /// "bos_token", "eos_token" and the other special tokens the files name, spelled out; for chat templates.
  std::map<std::string, std::string> special_tokens() const;
  /// Ids that end a turn or a text: eos, whichever of <|im_end|>, <|eot_id|>, <end_of_turn>, ... the vocabulary has, and
  /// eos_token_id of the folder's generation_config.json (or config.json).
  std::vector<int64_t> stop_token_ids() const;
  bool is_special(int64_t id) const;

  /// "byte-level BPE", "SentencePiece BPE" or "SentencePiece Unigram".
  std::string kind() const;
  /// The Jinja source found beside the vocabulary, for ChatTemplate::from_jinja.
  std::optional<std::string> chat_template() const;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const TokenizerEngine> engine);
  std::shared_ptr<const TokenizerEngine> engine_;
};

/// The ids that end a generation by a folder's generation_config.json or, where it has none, by its config.json; empty
/// without either. Throws IoError for broken files.
INTROSPECT_EXPORT std::vector<int64_t> eos_token_ids_of(const std::filesystem::path& folder);

}  // namespace introspect::text
