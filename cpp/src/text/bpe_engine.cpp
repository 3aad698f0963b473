#include "text/bpe_engine.h"

#include "introspect/core/check.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

constexpr size_t kMaxPieceBytes = size_t{1} << 20;

AddedTokenMatcher matcher_of(const std::vector<AddedToken>& added, bool normalized,
                             const Normalizer& normalizer) {
  std::vector<AddedToken> chosen;
  for (const auto& token : added) {
    if (token.normalized != normalized) continue;
    chosen.push_back(token);
    if (normalized) chosen.back().content = normalize(normalizer, token.content);
  }
  return AddedTokenMatcher(std::move(chosen));
}

}  // namespace

BpeEngine::BpeEngine(Vocabulary vocabulary, JoinRule join, BpeStages stages)
    : TokenizerEngine(std::move(vocabulary), std::move(join)),
      normalizer_(std::move(stages.normalizer)),
      pre_tokenizer_(std::move(stages.pre_tokenizer)),
      bpe_(std::move(stages.bpe)),
      spelling_(std::move(stages.spelling)),
      raw_(matcher_of(stages.added, false, normalizer_)),
      normalized_(matcher_of(stages.added, true, normalizer_)) {}

void BpeEngine::encode(std::string_view text, std::vector<int64_t>& ids) const {
  std::deque<std::string> texts;  // what the encoder's cached words point into
  std::deque<Words> words;
  Bpe::Encoder encoder(bpe_);
  TextBudget budget(text.size());
  bool at_start = true;
  for (const auto& raw : raw_.cut(text, budget)) {
    if (raw.token) {
      ids.push_back(raw.token->id);
      at_start = false;
      continue;
    }
    // tokenizers asks where a piece stood in the text as it was given.
    at_start &= !(squeezes_spaces(normalizer_) && raw.text.starts_with(' '));
    for (const auto& piece : normalized_.cut(texts.emplace_back(normalize(normalizer_, raw.text)), budget)) {
      if (piece.token) {
        ids.push_back(piece.token->id);
      } else {
        for (const auto word :
             words.emplace_back(pre_tokenize(pre_tokenizer_, piece.text, at_start, budget)).views)
          encoder.encode(word, ids);
      }
      at_start = false;
    }
  }
}

Piece BpeEngine::piece(int64_t id) const {
  const auto token = vocabulary.tokens[id];
  if (spelling_.byte_level) {
    auto bytes = spelled_bytes(token);
    return {bytes ? std::move(*bytes)
                  : std::string(token)};  // an added token may hold characters that spell no byte
  }
  std::string text(token);
  for (const auto& step : spelling_.replace) {
    text = replace_all(text, step.from, step.to);
    check<ConfigError>(text.size() <= kMaxPieceBytes, "tokenizer: the decoder makes token ", id,
                       " longer than ", kMaxPieceBytes, " bytes");
  }
  if (spelling_.byte_fallback)
    if (const auto byte = byte_of_token(text)) return {std::string(1, *byte), true};
  return {std::move(text)};
}

}  // namespace introspect::text
