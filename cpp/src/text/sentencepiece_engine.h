#pragma once

#include <filesystem>
#include <memory>

#include "text/sentencepiece_model.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// A tokenizer.model, run by libsentencepiece. Its control tokens are found inside a text only if `config` is present.
std::shared_ptr<const TokenizerEngine> read_tokenizer_model(const std::string& bytes,
                                                            const TokenizerConfig& config);

/// The same for a BPE vocabulary that came from elsewhere; control tokens are found inside a text.
std::shared_ptr<const TokenizerEngine> sentencepiece_engine(SentencePieceModel model, Vocabulary vocabulary);

}  // namespace introspect::text
