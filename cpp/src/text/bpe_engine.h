#pragma once

#include <string>
#include <utility>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// How tokens are spelled out: GPT-2's bytes, or text in which some characters stand for others.
struct BpeSpelling {
  bool byte_level = false;
  std::vector<Replace> replace = {};  // in each token, in order
  bool byte_fallback = false;         // <0xNN> is a byte
};

/// BPE with the stages of a tokenizer.json: added tokens, normalizer, pre-tokenizer, merges.
struct BpeStages {
  std::vector<AddedToken> added;
  Normalizer normalizer = {};
  PreTokenizer pre_tokenizer = {};
  Bpe bpe = {};
  BpeSpelling spelling = {};
};

class BpeEngine : public TokenizerEngine {
 public:
  BpeEngine(Vocabulary vocabulary, JoinRule join, BpeStages stages);
  void encode(std::string_view text, std::vector<int64_t>& ids) const override;
  Piece piece(int64_t id) const override;

 private:
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  Bpe bpe_;
  BpeSpelling spelling_;
  AddedTokenMatcher raw_, normalized_;  // looked for before and after normalization
};

}  // namespace introspect::text
