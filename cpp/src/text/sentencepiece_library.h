#pragma once

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

namespace introspect::text {

/// What libintrospect calls of sentencepiece, as plain functions and memory that never changes hands.
///
/// sentencepiece is linked into a small module of its own, which is opened with symbols of its own. Linked in the usual
/// way, its shared library and torch's meet: both define `FLAGS_minloglevel`, with different types, and the one that is
/// loaded second writes over the other's memory.
struct SentencePieceFunctions {
  /// Hands `n` bytes of a message to whoever asked, who copies them.
  using Say = void (*)(void* listener, const char* message, size_t n);
  /// Hands over the ids of a text.
  using Take = void (*)(void* listener, const int* ids, size_t n);

  void* (*load)(const char* bytes, size_t n, Say error, void* listener);  // null after an error
  void (*destroy)(void* processor);
  int (*piece_size)(const void* processor);
  bool (*encode)(const void* processor, const char* text, size_t n, Take take, Say error, void* listener);
};

/// A model that sentencepiece has read. Encoding is const and may go on in several threads.
class SentencePieceProcessor {
 public:
  /// Throws IoError for bytes that sentencepiece does not take, and where the module cannot be opened.
  explicit SentencePieceProcessor(std::string_view model_proto);

  int piece_size() const;

  /// Replaces `ids` by those of the text. Throws ConfigError with sentencepiece's message.
  void encode(std::string_view text, std::vector<int>& ids) const;

 private:
  std::shared_ptr<void> processor_;
};

}  // namespace introspect::text
