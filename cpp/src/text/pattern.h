#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/text_budget.h"

namespace introspect::text {

/// A regular expression of a tokenizer file, run by PCRE2.
///
/// These files are written for Oniguruma. What both engines read alike is taken as it is; white space, letters and numbers
/// follow Unicode 16 whatever PCRE2 was built with; a construct they read differently is a ConfigError, as is a pattern
/// that does not compile. Matching is bounded in backtracking, in memory and, by the text's budget, in time.
class Pattern {
 public:
  /// `file` stands in front of every message.
  explicit Pattern(const std::string& source, std::string file = "tokenizer");
  static Pattern literal(const std::string& text);

  using Span = std::pair<size_t, size_t>;  // first byte, one past the last
  /// The matches in valid UTF-8, leftmost first, none empty. Throws ConfigError, naming file and pattern, for a text on
  /// which a bound is exceeded.
  std::vector<Span> matches(std::string_view text, TextBudget& budget) const;

 private:
  Pattern() = default;
  std::string source_;
  std::string who_;                   // file and pattern, for messages
  std::shared_ptr<const void> code_;  // pcre2_code; null for a literal
};

}  // namespace introspect::text
