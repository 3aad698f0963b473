#include "text/added_tokens.h"

#include "introspect/core/check.h"
#include "text/pattern.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

// Bounds the work at each place of a text. Real added tokens have a few dozen bytes.
constexpr size_t kMaxTokenBytes = 1024;
// A thousand bytes of a hostile text and vocabulary can take 20 ms.
constexpr size_t kPlacesPerLook = 1024;

// Word characters as Unicode's regular expressions define them (UTS #18, annex C).
constexpr const char* kWord =
    "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-"
    "\\x{1f169}"
    "\\x{1f170}-\\x{1f189}]";

size_t start_of_last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool is_word(std::string_view character, TextBudget& budget) {
  static const Pattern word(kWord);
  return !word.matches(character, budget).empty();
}

bool touches_word(std::string_view text, size_t first, size_t last, TextBudget& budget) {
  const auto before = text.substr(0, first), after = text.substr(last);
  if (!before.empty() && is_word(before.substr(start_of_last_character(before)), budget)) return true;
  return !after.empty() && is_word(after.substr(0, utf8_step(after).size), budget);
}

bool is_space(char32_t c, bool ascii_only) {
  return is_white_space(c) && (c < 0x80 || !ascii_only);
}

size_t without_space_at_end(std::string_view text, bool ascii_only) {
  while (!text.empty()) {
    const size_t last = start_of_last_character(text);
    if (!is_space(utf8_step(text.substr(last)).code_point, ascii_only)) break;
    text = text.substr(0, last);
  }
  return text.size();
}

size_t space_at_start(std::string_view text, bool ascii_only) {
  size_t at = 0;
  while (at < text.size()) {
    const auto step = utf8_step(text.substr(at));
    if (!is_space(step.code_point, ascii_only)) break;
    at += step.size;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  uint32_t nodes = 1;
  for (uint32_t index = 0; index < tokens_.size(); ++index) {
    const std::string& content = tokens_[index].content;
    check<ConfigError>(content.size() <= kMaxTokenBytes, "tokenizer: an added token must have at most ",
                       kMaxTokenBytes, " bytes, got ", content.size());
    if (content.empty()) continue;
    uint32_t node = 0;
    for (const unsigned char byte : content) {
      const auto [place, is_new] = child_.try_emplace(uint64_t{node} << 8 | byte, nodes);
      if (is_new) ++nodes;
      node = place->second;
    }
    begins_token_[static_cast<unsigned char>(content[0])] = true;
    token_at_.emplace(node, index);
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (const unsigned char byte : text) {
    const auto next = child_.find(uint64_t{node} << 8 | byte);
    if (next == child_.end()) break;
    node = next->second;
    if (const auto token = token_at_.find(node); token != token_at_.end()) longest = &tokens_[token->second];
  }
  return longest;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::cut(std::string_view text,
                                                             TextBudget& budget) const {
  std::vector<Piece> pieces;
  size_t done = 0;
  size_t space_first = 0, space_last = 0;  // white space that was walked through
  size_t looked_at = 0;
  for (size_t at = 0; at < text.size();) {
    if (at - looked_at >= kPlacesPerLook) {
      budget.look("tokenizer: the added tokens");
      looked_at = at;
    }
    const AddedToken* token =
        begins_token_[static_cast<unsigned char>(text[at])] ? longest_at(text.substr(at)) : nullptr;
    if (!token) {
      ++at;
      continue;
    }
    size_t first = at, last = at + token->content.size();
    at = last;
    if (token->single_word && touches_word(text, first, last, budget)) continue;
    if (token->lstrip && done < first)
      first = done + without_space_at_end(text.substr(done, first - done), token->ascii_space);
    if (token->rstrip) {
      if (last < space_first || last >= space_last) {
        space_first = last;
        space_last = last + space_at_start(text.substr(last), token->ascii_space);
      }
      last = space_last;
    }
    if (first > done) pieces.push_back({text.substr(done, first - done), nullptr});
    pieces.push_back({text.substr(first, last - first), token});
    done = last;
  }
  if (done < text.size()) pieces.push_back({text.substr(done), nullptr});
  return pieces;
}

}  // namespace introspect::text
