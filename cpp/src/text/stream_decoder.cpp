#include "introspect/text/stream_decoder.h"

#include <utility>

#include "introspect/core/check.h"
#include "text/piece_joiner.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

StreamDecoder::StreamDecoder(Tokenizer tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)),
      skip_special_tokens_(skip_special_tokens),
      joiner_(std::make_unique<PieceJoiner>(tokenizer_.engine_->join)) {}

StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(int64_t id) {
  const auto& vocabulary = tokenizer_.engine_->vocabulary;
  check<std::out_of_range>(vocabulary.has(id), "StreamDecoder.push: the id must be a token in [0, ",
                           vocabulary.tokens.size(), "), got ", id);
  if (skip_special_tokens_ && vocabulary.special.contains(id)) return {};
  return joiner_->push(tokenizer_.engine_->piece(id));
}

std::string StreamDecoder::finish() {
  return joiner_->finish();
}

}  // namespace introspect::text
