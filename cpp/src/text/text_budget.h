#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace introspect::text {

/// The processor time that one text may take, over all stages of a tokenizer file: patterns and tokens of a hostile file
/// can be slow without end, each step of them within its own bounds.
class TextBudget {
 public:
  /// 3 s and 10 us a byte: several times what real tokenizers take of a long text, and for a page of text 3 s.
  explicit TextBudget(size_t text_bytes);

  /// Called now and then by whoever works on the text; costs about 30 ns. Returns whether the work since the last look
  /// took less than 2 ms. Throws ConfigError, beginning with `who`, when the budget is spent; lets Ctrl-C through.
  bool look(const std::string& who);

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point start_, last_, last_interrupt_;
  double start_cpu_, allowed_;  // in seconds
};

}  // namespace introspect::text
