#pragma once

#include <filesystem>
#include <memory>

#include "text/sentencepiece_model.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// A tokenizer.model as transformers reads it with the files of `config` beside it. Where there are none it is run by
/// libsentencepiece as it is, with <s> in front, and its control tokens are not looked for inside a text.
///
/// A Unigram model and one with a character map are run by libsentencepiece in either case; transformers' own code for
/// these gives other ids for rare texts (runs of ▁, control characters).
std::shared_ptr<const TokenizerEngine> read_tokenizer_model(const std::string& bytes, TokenizerConfig config);

/// Gives the config the special tokens that a tokenizer.model names, where the class of the config takes them.
void set_model_defaults(TokenizerConfig& config, const SentencePieceModel& model);

/// A BPE vocabulary that came from elsewhere. `found` are the tokens looked for inside a text.
std::shared_ptr<const TokenizerEngine> sentencepiece_engine(SentencePieceModel model, Vocabulary vocabulary,
                                                            std::vector<AddedToken> found);

}  // namespace introspect::text
