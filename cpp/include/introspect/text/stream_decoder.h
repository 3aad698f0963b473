#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "introspect/export.h"
#include "introspect/text/tokenizer.h"

namespace introspect::text {

class PieceJoiner;

/// Text from ids that arrive one at a time, for printing while a model generates.
///
/// Everything `push` and `finish` return, joined, is `decode` of all the ids; each part alone is valid UTF-8. A
/// character spread over several tokens comes out with the token that completes it. One stream, one thread.
class INTROSPECT_EXPORT StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special_tokens = true);
  StreamDecoder(StreamDecoder&&) noexcept;
  StreamDecoder& operator=(StreamDecoder&&) noexcept;
  ~StreamDecoder();

  /// The text that is certain once `id` has come; possibly empty. Throws std::out_of_range for an id without a token.
  std::string push(int64_t id);
  /// What was still held back, an incomplete character as U+FFFD. The decoder then starts anew.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<PieceJoiner> joiner_;
};

}  // namespace introspect::text
