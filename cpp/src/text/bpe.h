#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

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
  using TokenIds = std::unordered_map<std::string_view, int32_t>;
  using Merge = std::pair<std::string_view, std::string_view>;

  Bpe() : merges_(1) { byte_ids_.fill(-1); }  // of no tokens
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
  struct MergedPair {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  std::optional<int32_t> find(std::string_view word) const;
  const MergedPair* find_merge(int32_t left, int32_t right) const;

  BpeOptions options_;
  std::array<int32_t, 256>
      byte_ids_;                    // of single bytes: byte-level, or <0xNN> for byte fallback; -1 if missing
  std::vector<MergedPair> merges_;  // a hash table with linear probing, its size a power of two
  std::vector<std::string> spelled_;  // byte-level: what the keys of ids_ point to
  TokenIds ids_;                      // by the text itself; the keys point into spelled_ or the vocabulary
};

}  // namespace introspect::text
