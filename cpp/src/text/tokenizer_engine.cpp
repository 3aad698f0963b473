#include "text/tokenizer_engine.h"

#include <charconv>
#include <cstdio>

#include "introspect/core/check.h"

namespace introspect::text {

void Vocabulary::add(std::string token, int64_t id) {
  check<IoError>(id >= 0 && id < kMaxSize, "tokenizer: a token's id must be in [0, ", kMaxSize, "), got ",
                 id);
  if (id >= static_cast<int64_t>(added_.size())) {
    added_.resize(id + 1);
    present.resize(id + 1);
  }
  check<IoError>(!present[id] || added_[id] == token, "tokenizer: id ", id, " must be of one token, got \"",
                 added_[id], "\" and \"", token, "\"");
  added_[id] = std::move(token);
  present[id] = true;
}

std::vector<AddedToken> Vocabulary::take(const AddedVocabulary& added, bool split_special) {
  std::vector<AddedToken> found_in_texts;
  for (auto& token : added.tokens()) {
    add(token.content, token.id);
    const bool is_special = added.special().contains(token.content);
    if (is_special) special.insert(token.id);
    if (!is_special || !split_special) found_in_texts.push_back(std::move(token));
  }
  return found_in_texts;
}

void Vocabulary::index() {
  tokens = TokenTexts(added_.size(), [&](size_t id) { return std::string_view(added_[id]); });
  added_ = {};
  fill_ids();
}

void Vocabulary::index(TokenTexts all) {
  tokens = std::move(all);
  present.assign(tokens.size(), true);
  fill_ids();
}

void Vocabulary::fill_ids() {
  ids_ = TokenIds(tokens);
  for (size_t id = 0; id < tokens.size(); ++id)
    if (present[id]) ids_.add(id);
}

std::optional<int64_t> Vocabulary::find(std::string_view token) const {
  return ids_.find(token);
}

std::optional<char> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

std::string token_of_byte(char byte) {
  char token[8];
  std::snprintf(token, sizeof token, "<0x%02X>", static_cast<unsigned char>(byte));
  return token;
}

}  // namespace introspect::text
