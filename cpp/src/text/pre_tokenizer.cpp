#include "text/pre_tokenizer.h"

#include <algorithm>

#include "introspect/core/check.h"
#include "text/utf8.h"

namespace introspect::text {

const char* const kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const char* const kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const char* const kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

struct Piece {
  size_t first, last;
  bool is_match;
};

/// The whole text as alternating matches and gaps.
std::vector<Piece> cut(const Split& split, std::string_view text, TextBudget& budget) {
  std::vector<Piece> pieces;
  size_t at = 0;
  for (const auto& [first, last] : split.pattern.matches(text, budget)) {
    if (first > at) pieces.push_back({at, first, split.invert});
    pieces.push_back({first, last, !split.invert});
    at = last;
  }
  if (at < text.size()) pieces.push_back({at, text.size(), split.invert});
  return pieces;
}

void add_pieces(const Split& split, std::string_view text, bool, std::vector<std::string_view>& out,
                std::deque<std::string>&, TextBudget& budget) {
  const auto pieces = cut(split, text, budget);
  const auto put = [&](size_t first, size_t last) { out.push_back(text.substr(first, last - first)); };
  for (size_t i = 0; i < pieces.size();) {
    size_t next = i + 1;
    switch (split.behavior) {
      case SplitBehavior::removed:
        if (pieces[i].is_match) {
          i = next;
          continue;
        }
        break;
      case SplitBehavior::isolated:
        break;
      case SplitBehavior::contiguous:
        while (next < pieces.size() && pieces[next].is_match == pieces[i].is_match) ++next;
        break;
      case SplitBehavior::merged_with_previous:
        if (!pieces[i].is_match && next < pieces.size() && pieces[next].is_match) ++next;
        break;
      case SplitBehavior::merged_with_next:
        if (pieces[i].is_match && next < pieces.size() && !pieces[next].is_match) ++next;
        break;
    }
    put(pieces[i].first, pieces[next - 1].last);
    i = next;
  }
}

void add_pieces(const PrefixSpace&, std::string_view text, bool, std::vector<std::string_view>& out,
                std::deque<std::string>& rewritten, TextBudget&) {
  if (text.starts_with(' '))
    out.push_back(text);
  else
    out.push_back(rewritten.emplace_back(concat(" ", text)));
}

void add_pieces(const Metaspace& step, std::string_view text, bool at_start,
                std::vector<std::string_view>& out, std::deque<std::string>& rewritten, TextBudget&) {
  std::string spelled = replace_all(text, " ", step.replacement);
  const bool prepend =
      step.prepend == Metaspace::Prepend::always || (step.prepend == Metaspace::Prepend::first && at_start);
  if (prepend && !spelled.starts_with(step.replacement)) spelled.insert(0, step.replacement);
  const std::string_view whole = rewritten.emplace_back(std::move(spelled));
  for (size_t at = 0; at < whole.size();) {
    const size_t next = step.split ? whole.find(step.replacement, at + 1) : std::string_view::npos;
    out.push_back(whole.substr(at, next - at));
    at = std::min(next, whole.size());
  }
}

void add_pieces(const Isolate& step, std::string_view text, bool, std::vector<std::string_view>& out,
                std::deque<std::string>&, TextBudget& budget) {
  for (const auto& piece : step.pieces.cut(text, budget)) out.push_back(piece.text);
}

}  // namespace

Words pre_tokenize(const PreTokenizer& steps, std::string_view text, bool at_start, TextBudget& budget) {
  Words words;
  if (text.empty()) return words;
  words.views = {text};
  for (const auto& step : steps) {
    std::vector<std::string_view> cut_further;
    cut_further.reserve(words.views.size());
    for (const auto word : words.views) {
      const bool first = at_start && word.data() == words.views.front().data();
      std::visit([&](const auto& one) { add_pieces(one, word, first, cut_further, words.rewritten, budget); },
                 step);
    }
    words.views = std::move(cut_further);
  }
  return words;
}

}  // namespace introspect::text
