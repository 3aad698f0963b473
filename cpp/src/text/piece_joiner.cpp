#include "text/piece_joiner.h"

#include <utility>

#include "text/utf8.h"

namespace introspect::text {

void PieceJoiner::restart() {
  held_.clear();
  at_start_ = true;
  to_strip_ = rule_.strip_left;
}

std::string PieceJoiner::push(const Piece& piece) {
  std::string text;
  if (!std::exchange(at_start_, false)) {
    if (rule_.invalid != JoinRule::Invalid::sequence && !piece.is_byte) text = decided(true);
    held_ += rule_.separator;
  } else if (rule_.strip_piece && piece.is_spelled && piece.bytes.starts_with(' ')) {
    return piece.bytes.substr(1);
  }
  held_ += piece.bytes;
  if (rule_.invalid == JoinRule::Invalid::sequence || !piece.is_byte ||
      rule_.invalid == JoinRule::Invalid::each_byte)
    text += decided(!piece.is_byte && rule_.invalid != JoinRule::Invalid::sequence);
  return stripped(std::move(text));
}

std::string PieceJoiner::finish() {
  std::string text = stripped(decided(true));
  restart();
  return text;
}

/// Takes from held_ what is certain: everything if `at_end`.
std::string PieceJoiner::decided(bool at_end) {
  std::string text;
  size_t at = 0;
  bool broken = false;
  while (at < held_.size()) {
    const auto step = utf8_step(std::string_view(held_).substr(at));
    if (step.kind == Utf8Step::Kind::incomplete && !at_end) break;
    if (step.kind == Utf8Step::Kind::character) {
      text.append(held_, at, step.size);
    } else {
      broken = true;
      const size_t marks = rule_.invalid == JoinRule::Invalid::sequence ? 1 : step.size;
      for (size_t i = 0; i < marks; ++i) text += kReplacementCharacter;
    }
    at += step.size;
  }
  if (broken && rule_.invalid == JoinRule::Invalid::whole_run) {
    text.clear();
    for (size_t i = 0; i < held_.size(); ++i) text += kReplacementCharacter;
  }
  held_.erase(0, at);
  return text;
}

std::string PieceJoiner::stripped(std::string text) {
  size_t spaces = 0;
  while (to_strip_ > 0 && spaces < text.size()) {
    if (text[spaces] != ' ') {
      to_strip_ = 0;
    } else {
      ++spaces, --to_strip_;
    }
  }
  return text.substr(spaces);
}

}  // namespace introspect::text
