#include "text/bpe.h"

#include <algorithm>
#include <cstdio>
#include <span>
#include <tuple>

#include "introspect/core/check.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

constexpr size_t kLongestKnownWord = 256;  // longer words hardly come twice

}  // namespace

Bpe::Bpe(const TokenIds& tokens, const std::vector<Merge>& merges, BpeOptions options) : options_(options) {
  byte_ids_.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    char fallback[8];
    std::snprintf(fallback, sizeof fallback, "<0x%02X>", byte);
    const auto found = tokens.find(options_.byte_level ? std::string_view(spelling_of_byte(byte)) : fallback);
    if (found) byte_ids_[byte] = *found;
  }

  struct Pair {
    int32_t left, right;
    uint32_t rank;
  };
  std::vector<Pair> pairs;
  pairs.reserve(merges.size());
  merged_.reserve(merges.size());
  std::string whole;
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    whole.assign(left).append(right);
    const auto left_id = tokens.find(left), right_id = tokens.find(right), merged = tokens.find(whole);
    check<IoError>(left_id && right_id && merged, "tokenizer: merge ", rank, " (\"", left, "\" \"", right,
                   "\") must join two tokens to a third one of the vocabulary");
    pairs.push_back({*left_id, *right_id, rank});
    merged_.push_back(*merged);
  }
  std::ranges::sort(pairs, {}, [](const Pair& p) { return std::tuple(p.left, p.right, p.rank); });
  first_.reserve(tokens.texts().size() + 1);
  rights_.reserve(pairs.size());
  for (size_t i = 0; i < pairs.size(); ++i) {
    first_.resize(static_cast<size_t>(pairs[i].left) + 1, static_cast<uint32_t>(rights_.size()));
    const bool again =
        i + 1 < pairs.size() && pairs[i + 1].left == pairs[i].left && pairs[i + 1].right == pairs[i].right;
    if (!again) rights_.push_back({pairs[i].right, pairs[i].rank});  // of equal pairs the last
  }
  first_.resize(tokens.texts().size() + 1, static_cast<uint32_t>(rights_.size()));

  if (!options_.byte_level) {
    ids_ = tokens;
  } else if (options_.ignore_merges) {
    const auto& texts = tokens.texts();
    std::vector<std::optional<std::string>> bytes(texts.size());
    for (size_t id = 0; id < texts.size(); ++id)
      if (tokens.find(texts[id]) == static_cast<int32_t>(id)) bytes[id] = spelled_bytes(texts[id]);
    ids_ = TokenIds(
        TokenTexts(bytes.size(), [&](size_t id) { return std::string_view(bytes[id] ? *bytes[id] : ""); }));
    for (size_t id = 0; id < bytes.size(); ++id)
      if (bytes[id]) ids_.add(id);
  }
}

std::optional<Bpe::Merged> Bpe::find_merge(int32_t left, int32_t right) const {
  const auto at = static_cast<size_t>(left);
  if (at + 1 >= first_.size()) return std::nullopt;
  const std::span all(rights_.data() + first_[at], rights_.data() + first_[at + 1]);
  const auto found = std::ranges::lower_bound(all, right, {}, &Right::right);
  if (found == all.end() || found->right != right) return std::nullopt;
  return Merged{found->rank, merged_[found->rank]};
}

void Bpe::Encoder::encode(std::string_view word, std::vector<int64_t>& out) {
  if (bpe_.options_.ignore_merges) {
    if (const auto id = bpe_.ids_.find(word)) {
      out.push_back(*id);
      return;
    }
  }
  if (const auto known = known_.find(word); known != known_.end()) {
    out.insert(out.end(), known->second.begin(), known->second.end());
    return;
  }
  split(word);
  merge_all();
  const size_t first = out.size();
  for (int32_t at = symbols_.empty() ? -1 : 0; at >= 0; at = symbols_[at].next)
    out.push_back(symbols_[at].id);
  if (word.size() <= kLongestKnownWord)
    known_.emplace(word, std::vector<int64_t>(out.begin() + first, out.end()));
}

/// The word as single characters (or bytes), linked to their neighbours.
void Bpe::Encoder::split(std::string_view word) {
  symbols_.clear();
  const auto put = [&](int32_t id) {
    const auto at = static_cast<int32_t>(symbols_.size());
    if (at > 0) symbols_.back().next = at;
    symbols_.push_back({id, at - 1, -1});
  };
  bool after_unknown = false;
  const auto put_unknown = [&] {  // without an unknown token the character is left out
    if (bpe_.options_.unknown_id && !(after_unknown && bpe_.options_.fuse_unknown))
      put(*bpe_.options_.unknown_id);
    after_unknown = true;
  };
  const auto put_known = [&](int32_t id) {
    put(id);
    after_unknown = false;
  };

  if (bpe_.options_.byte_level) {
    for (const unsigned char byte : word)
      bpe_.byte_ids_[byte] >= 0 ? put_known(bpe_.byte_ids_[byte]) : put_unknown();
    return;
  }
  for (size_t i = 0; i < word.size();) {
    const auto character = word.substr(i, utf8_step(word.substr(i)).size);
    i += character.size();
    const auto id = bpe_.ids_.find(character);
    const auto has_byte = [&](unsigned char byte) { return bpe_.byte_ids_[byte] >= 0; };
    if (id) {
      put_known(*id);
    } else if (bpe_.options_.byte_fallback && std::ranges::all_of(character, has_byte)) {
      for (const unsigned char byte : character) put_known(bpe_.byte_ids_[byte]);
    } else {
      put_unknown();
    }
  }
}

/// Queues the merge of the symbol at `left` with its neighbour, if there is one.
void Bpe::Encoder::offer(int32_t left) {
  if (left < 0 || symbols_[left].next < 0) return;
  const auto merge = bpe_.find_merge(symbols_[left].id, symbols_[symbols_[left].next].id);
  if (!merge) return;
  queue_.push_back({merge->rank, left, merge->id});
  std::ranges::push_heap(queue_, [](const Candidate& a, const Candidate& b) {
    return std::pair(a.rank, a.position) > std::pair(b.rank, b.position);
  });
}

void Bpe::Encoder::merge_all() {
  constexpr int32_t kMergedAway = -1;  // as id
  queue_.clear();
  for (int32_t at = 0; at < static_cast<int32_t>(symbols_.size()); ++at) offer(at);
  while (!queue_.empty()) {
    std::ranges::pop_heap(queue_, [](const Candidate& a, const Candidate& b) {
      return std::pair(a.rank, a.position) > std::pair(b.rank, b.position);
    });
    const Candidate best = queue_.back();
    queue_.pop_back();
    Symbol& left = symbols_[best.position];
    if (left.id == kMergedAway || left.next < 0) continue;
    Symbol& right = symbols_[left.next];
    const auto merge = bpe_.find_merge(left.id, right.id);
    if (!merge || merge->id != best.merged) continue;  // a neighbour has changed since it was queued
    left.id = best.merged;
    right.id = kMergedAway;
    left.next = right.next;
    if (left.next >= 0) symbols_[left.next].previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
}

}  // namespace introspect::text
