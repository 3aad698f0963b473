#include <catch2/catch.hpp>

#include "introspect/engine/token_trie.h"

using introspect::engine::TokenTrie;
using Ids = std::vector<int64_t>;

TEST_CASE("equal prefixes are one path, numbered depth first", "[engine]") {
  // 5 - 6 - 7         0 - 1 - 2
  //  \   \_ 9          \   \_ 3
  //   \_ 8 - 6          \_ 4 - 5
  // 4                 numbered after 4, the smaller token: + 1
  const TokenTrie trie({{5, 8, 6}, {5, 6, 9}, {4}, {5, 6, 7}, {5, 6}, {5, 6, 9}});
  REQUIRE(trie.size() == 7);
  REQUIRE(trie.tokens() == Ids{4, 5, 6, 7, 9, 8, 6});
  REQUIRE(trie.parents() == Ids{-1, -1, 1, 2, 2, 1, 5});
  REQUIRE(trie.depths() == Ids{0, 0, 1, 2, 2, 1, 2});
  REQUIRE(trie.ends() ==
          Ids{6, 4, 0, 3, 2, 4});  // also of a sequence twice, and of one that others go on from
  REQUIRE(trie.path(6) == Ids{1, 5, 6});
  REQUIRE(trie.path(0) == Ids{0});
}

TEST_CASE("every path spells its sequence, and ancestors before a run of nodes are its first node's",
          "[engine]") {
  // All words of up to four letters out of three, in an order that is not that of the tree.
  std::vector<Ids> sequences;
  for (int64_t n = 0; n < 81; ++n) {
    const int64_t mixed = n * 35 % 81;
    Ids word;
    for (int64_t letter = mixed, length = 0; length <= mixed % 4; letter /= 3, ++length)
      word.push_back(letter % 3);
    sequences.push_back(word);
  }
  const TokenTrie trie(sequences);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Ids spelt;
    for (const int64_t node : trie.path(trie.ends()[i]))
      spelt.push_back(trie.tokens()[static_cast<size_t>(node)]);
    REQUIRE(spelt == sequences[i]);
  }
  for (int64_t first = 0; first < trie.size(); ++first) {
    const auto kept = trie.path(first);
    for (int64_t node = first; node < trie.size(); ++node) {
      for (const int64_t ancestor : trie.path(node)) {
        REQUIRE(ancestor <= node);
        if (ancestor < first) REQUIRE(std::find(kept.begin(), kept.end(), ancestor) != kept.end());
      }
    }
  }
}

TEST_CASE("a trie needs sequences, and tokens in each", "[engine]") {
  using Catch::Matchers::Contains;
  REQUIRE_THROWS_AS(TokenTrie({}), std::invalid_argument);
  REQUIRE_THROWS_WITH(TokenTrie({{1}, {}, {2}}), Contains("sequence 1"));
  const TokenTrie trie({{1, 2}});
  REQUIRE_THROWS_AS(trie.path(-1), std::out_of_range);
  REQUIRE_THROWS_WITH(trie.path(2), Contains("0 to 1") && Contains("got 2"));
}
