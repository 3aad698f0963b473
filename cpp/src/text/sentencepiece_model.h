#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace introspect::text {

/// The parts of sentencepiece's ModelProto that this library reads or writes itself.
/// Source: src/sentencepiece_model.proto of google/sentencepiece; the wire format is Protocol Buffers'.
struct SentencePieceModel {
  enum Type { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  enum Kind { unigram = 1, bpe = 2, word = 3, character = 4 };

  struct Piece {
    std::string text;
    float score = 0;
    int type = normal;
  };
  std::vector<Piece> pieces;
  int64_t kind = unigram;
  int64_t unknown_id = 0;  // of pieces; not read from a file
  std::string unknown_surface = " \xE2\x81\x87 ";
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  std::string normalization;  // a compiled character map

  /// Reads a tokenizer.model. Throws IoError for bytes that are no such model, or one whose character map points outside
  /// itself: libsentencepiece would follow it there.
  static SentencePieceModel parse(std::string_view bytes);

  /// The model as bytes, of kind bpe with byte fallback and without a character map.
  std::string serialized_bpe() const;
};

}  // namespace introspect::text
