#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "text/added_tokens.h"
#include "text/pattern.h"

namespace introspect::text {

/// What cuts a text into words, in order. The names are those of tokenizer.json.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
struct Split {
  Pattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // the pattern matches the words, not what stands between them
};
/// Puts a space before each piece that does not begin with one.
struct PrefixSpace {};
/// Writes spaces as `replacement` and puts one before the text.
struct Metaspace {
  enum class Prepend { always, first, never };
  std::string replacement = "\xE2\x96\x81";  // ▁
  Prepend prepend = Prepend::always;
  bool split = true;  // before each replacement
};
/// Makes each of some pieces a word of its own: what sentencepiece calls user-defined.
struct Isolate {
  AddedTokenMatcher pieces;
};
using PreTokenizer = std::vector<std::variant<Split, PrefixSpace, Metaspace, Isolate>>;

/// Words in order. They point into the text or into `rewritten`, which keeps what a step has changed.
struct Words {
  std::vector<std::string_view> views;
  std::deque<std::string> rewritten;
};

/// `at_start`: nothing of the whole text, not even a special token, stands before `text`.
Words pre_tokenize(const PreTokenizer& steps, std::string_view text, bool at_start, TextBudget& budget);

/// GPT-2's and Llama-3's way of cutting a text, and Qwen2's, as in their tokenizer.json.
extern const char* const kGpt2Pattern;
extern const char* const kLlama3Pattern;
extern const char* const kQwen2Pattern;

}  // namespace introspect::text
