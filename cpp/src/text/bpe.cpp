#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstdio>

#include "introspect/core/check.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

size_t slot_of(uint64_t pair, size_t slots) {
  return static_cast<size_t>((pair ^ pair >> 29) * 0x9E3779B97F4A7C15u >> 20) &
         (slots - 1);  // Fibonacci hashing
}

constexpr size_t kLongestKnownWord = 256;  // longer words hardly come twice

}  // namespace

Bpe::Bpe(const TokenIds& tokens, const std::vector<Merge>& merges, BpeOptions options) : options_(options) {
  byte_ids_.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    char fallback[8];
    std::snprintf(fallback, sizeof fallback, "<0x%02X>", byte);
    const auto found = tokens.find(options_.byte_level ? std::string_view(spelling_of_byte(byte)) : fallback);
    if (found != tokens.end()) byte_ids_[byte] = found->second;
  }

  merges_.resize(std::bit_ceil(2 * merges.size() + 2));
  std::string whole;
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    whole.assign(left).append(right);
    const auto left_id = tokens.find(left), right_id = tokens.find(right), merged = tokens.find(whole);
    check<IoError>(left_id != tokens.end() && right_id != tokens.end() && merged != tokens.end(),
                   "tokenizer: merge ", rank, " (\"", left, "\" \"", right,
                   "\") must join two tokens to a third one of the vocabulary");
    const uint64_t pair = pair_of(left_id->second, right_id->second);
    size_t slot = slot_of(pair, merges_.size());
    while (merges_[slot].pair != kNoPair && merges_[slot].pair != pair)
      slot = (slot + 1) & (merges_.size() - 1);
    merges_[slot] = {pair, rank, merged->second};
  }

  if (!options_.byte_level) {
    ids_ = tokens;
  } else if (options_.ignore_merges) {
    ids_.reserve(tokens.size());
    spelled_.reserve(tokens.size());  // never grows: the keys point into it
    for (const auto& [token, id] : tokens)
      if (auto bytes = spelled_bytes(token)) ids_.emplace(spelled_.emplace_back(std::move(*bytes)), id);
  }
}

std::optional<int32_t> Bpe::find(std::string_view word) const {
  const auto found = ids_.find(word);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

const Bpe::MergedPair* Bpe::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t slot = slot_of(pair, merges_.size());; slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kNoPair) return nullptr;
  }
}

void Bpe::Encoder::encode(std::string_view word, std::vector<int64_t>& out) {
  if (bpe_.options_.ignore_merges) {
    if (const auto id = bpe_.find(word)) {
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
    const auto id = bpe_.find(character);
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
  const auto* merge = bpe_.find_merge(symbols_[left].id, symbols_[symbols_[left].next].id);
  if (!merge) return;
  queue_.push_back({merge->rank, left, merge->merged});
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
    const auto* merge = bpe_.find_merge(left.id, right.id);
    if (!merge || merge->merged != best.merged) continue;  // a neighbour has changed since it was queued
    left.id = best.merged;
    right.id = kMergedAway;
    left.next = right.next;
    if (left.next >= 0) symbols_[left.next].previous = best.position;
    offer(left.previous);
    offer(best.position);
  }
}

}  // namespace introspect::text
