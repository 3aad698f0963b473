#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/token_table.h"

namespace introspect::text {

struct BpeOptions {
  bool byte_level =
      false;  // tokens spell bytes (see byte_alphabet.h); otherwise they are the characters themselves
  bool byte_fallback = false;  // an unknown character becomes the tokens <0x00> to <0xFF> of its bytes
  bool fuse_unknown = false;   // neighbouring unknown characters become one unknown token
  bool ignore_merges = false;  // a word that is a token is taken whole (Llama-3)
  std::optional<int32_t> unknown_id = {};
};

/// Byte-pair encoding of words: the adjacent pair of the lowest rank is merged, leftmost first, until none can be.
///
/// O(n log n) in the length of a word. Source: Sennrich et al. 2016, arXiv:1508.07909.
class Bpe {
 public:
  using Merge = std::pair<std::string_view, std::string_view>;

  Bpe() { byte_ids_.fill(-1); }  // of no tokens
  /// Merges in the order of their rank. Throws IoError for a merge whose parts or whole are not tokens.
  Bpe(const TokenIds& tokens, const std::vector<Merge>& merges, BpeOptions options);

  /// The words of one text, which share what was worked out for equal ones.
  class Encoder {
   public:
    explicit Encoder(const Bpe& bpe) : bpe_(bpe) {}
    void encode(std::string_view word, std::vector<int64_t>& out);

   private:
    struct Symbol {
      int32_t id, previous, next;  // positions of the neighbours, -1 at the ends
    };
    struct Candidate {
      uint32_t rank;
      int32_t position, merged;
    };
    void split(std::string_view word);
    void offer(int32_t left);
    void merge_all();

    const Bpe& bpe_;
    std::vector<Symbol> symbols_;
    std::vector<Candidate> queue_;
    std::unordered_map<std::string_view, std::vector<int64_t>> known_;
  };

 private:
  struct Right {
    int32_t right;
    uint32_t rank;
  };
  struct Merged {
    uint32_t rank;
    int32_t id;
  };
  std::optional<Merged> find_merge(int32_t left, int32_t right) const;

  BpeOptions options_;
  std::array<int32_t, 256>
      byte_ids_;                 // of single bytes: byte-level, or <0xNN> for byte fallback; -1 if missing
  std::vector<uint32_t> first_;  // of each token: where its merges with a token on its right begin
  std::vector<Right> rights_;    // in the order of `right` for each
  std::vector<int32_t> merged_;  // by rank
  TokenIds ids_;                 // by the text itself
};

}  // namespace introspect::text
