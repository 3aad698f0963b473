#pragma once

#include <memory>

#include "text/sentencepiece_model.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// Whether transformers turns a tokenizer.model of this class into a BPE without a character map.
bool becomes_bpe(const SentencePieceModel& model, TokenizerClass tokenizer_class);

/// A tokenizer.model as transformers turns it into a BPE. `vocabulary` has its pieces and added tokens, `found` are the
/// tokens looked for inside a text.
///
/// TokenizersBackend ranks merges by the pieces' scores and follows the model's own settings: what sentencepiece gives.
/// LlamaTokenizer and GemmaTokenizer rank them by id, which differs where scores and ids do: Llama-2's runs of spaces.
std::shared_ptr<const TokenizerEngine> bpe_of_sentencepiece(const SentencePieceModel& model,
                                                            const TokenizerConfig& config,
                                                            Vocabulary vocabulary,
                                                            std::vector<AddedToken> found);

}  // namespace introspect::text
