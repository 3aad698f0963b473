#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "text/added_vocabulary.h"
#include "text/piece_joiner.h"
#include "text/token_table.h"

namespace introspect::text {

/// The tokens of a tokenizer and what is known of them.
struct Vocabulary {
  TokenTexts tokens;          // by id; empty where an id has no token
  std::vector<bool> present;  // by id
  std::unordered_set<int64_t> special;
  std::map<std::string, std::string> special_tokens;  // "bos_token" and the others that have a text
  std::optional<int64_t> bos, eos, pad;
  std::vector<int64_t> stops;
  std::vector<int64_t> prefix, suffix;  // what goes around a text
  std::optional<std::string> chat_template;
  std::string kind;

  /// No file names more tokens than this; a larger id is a broken file, not an allocation.
  static constexpr int64_t kMaxSize = int64_t{1} << 22;

  /// Throws IoError for an id that is out of range or taken by another token.
  void add(std::string token, int64_t id);
  /// Adds these tokens. Returns those that are looked for inside a text: all, or without the special ones if
  /// `split_special`.
  std::vector<AddedToken> take(const AddedVocabulary& added, bool split_special);
  /// Makes what was added `tokens` that can be found; no token may be added afterwards. Of equal tokens the lowest id is
  /// found.
  void index();
  /// The same of texts of which each is a token.
  void index(TokenTexts all);
  std::optional<int64_t> find(std::string_view token) const;
  bool has(int64_t id) const { return id >= 0 && id < static_cast<int64_t>(present.size()) && present[id]; }

 private:
  void fill_ids();

  std::vector<std::string> added_;  // by id, until they are indexed
  TokenIds ids_;
};

/// What a kind of tokenizer does in its own way; Tokenizer has what all do alike.
class TokenizerEngine {
 public:
  TokenizerEngine(Vocabulary vocabulary, JoinRule join)
      : vocabulary(std::move(vocabulary)), join(std::move(join)) {}
  virtual ~TokenizerEngine() = default;

  /// Appends the ids of valid UTF-8, without the vocabulary's prefix and suffix.
  virtual void encode(std::string_view text, std::vector<int64_t>& ids) const = 0;
  /// What a token of the vocabulary adds to a decoded text.
  virtual Piece piece(int64_t id) const = 0;

  const Vocabulary vocabulary;
  const JoinRule join;
};

/// The byte of a token "<0x0A>"; nullopt for any other.
std::optional<char> byte_of_token(std::string_view token);
/// "<0x0A>".
std::string token_of_byte(char byte);

}  // namespace introspect::text
