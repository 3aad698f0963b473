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
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  std::string unknown_surface = " \xE2\x81\x87 ";
  // What the trainer called its special tokens; an id of -1: there is none.
  int64_t unknown_id = 0, bos_id = 1, eos_id = 2;
  std::string unknown_piece = "<unk>", bos_piece = "<s>", eos_piece = "</s>";
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  std::string normalization;  // a compiled character map

  /// Reads a tokenizer.model. Throws IoError for bytes that are no such model and whatever `validate` refuses.
  static SentencePieceModel parse(std::string_view bytes);

  /// Throws IoError, beginning with `who`, for what libsentencepiece would not take or would follow out of bounds: a
  /// character map that points outside itself, pieces that are empty, not UTF-8 or there twice, a type or a byte that
  /// does not fit.
  void validate(const char* who) const;

  /// The model as bytes for libsentencepiece, which is given no bytes that were not read here.
  std::string serialized() const;
};

}  // namespace introspect::text
