#pragma once

#include <string>
#include <string_view>

namespace introspect::text {

/// What a token adds to a text.
struct Piece {
  std::string bytes;
  bool is_byte = false;     // one byte of a character that is not in the vocabulary
  bool is_spelled = false;  // spelled in the vocabulary, where a space in front may be sentencepiece's own
};

/// How pieces become a text; each tokenizer has its own way with bytes that are not UTF-8.
struct JoinRule {
  enum class Invalid {
    sequence,  // one U+FFFD for each ill-formed part, over all pieces (byte-level BPE)
    whole_run,  // one U+FFFD for each byte of a run of byte pieces that is not UTF-8 as a whole (tokenizers' ByteFallback)
    each_byte,  // one U+FFFD for each byte of a run that belongs to no character (sentencepiece)
  };
  Invalid invalid = Invalid::sequence;
  int strip_left = 0;          // spaces taken from the front of the text
  bool strip_piece = false;    // one space is taken from the first piece if that is spelled (sentencepiece)
  std::string separator = {};  // between pieces
};

/// Joins pieces that come one at a time; returns text as soon as no later piece can change it.
class PieceJoiner {
 public:
  explicit PieceJoiner(JoinRule rule) : rule_(std::move(rule)) { restart(); }
  std::string push(const Piece& piece);
  std::string finish();

 private:
  void restart();
  std::string decided(bool at_end);
  std::string stripped(std::string text);

  JoinRule rule_;
  std::string held_;  // bytes that are not text yet
  bool at_start_ = true;
  int to_strip_ = 0;
};

}  // namespace introspect::text
