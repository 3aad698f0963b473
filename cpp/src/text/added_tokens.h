#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/text_budget.h"

namespace introspect::text {

/// A token that is found in the text itself before anything is split.
struct AddedToken {
  std::string content = {};
  int64_t id = 0;
  bool special = false;      // left out of a decoded text on request
  bool normalized = false;   // looked for after normalization
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool ascii_space = false;  // takes no other white space than ASCII's
  bool is_text = false;      // a config's, given as a string: it has no flags of its own
};

/// Cuts texts at added tokens: at each place the longest one, places from left to right.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  struct Piece {
    std::string_view text;
    const AddedToken* token;  // null: ordinary text
  };
  std::vector<Piece> cut(std::string_view text, TextBudget& budget) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::array<bool, 256> begins_token_{};
  std::unordered_map<uint64_t, uint32_t> child_;     // node << 8 | byte -> node of the trie; 0 is the root
  std::unordered_map<uint32_t, uint32_t> token_at_;  // node -> index in tokens_
};

}  // namespace introspect::text
