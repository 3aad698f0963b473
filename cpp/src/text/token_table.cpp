#include "text/token_table.h"

#include <bit>
#include <functional>

namespace introspect::text {
namespace {

constexpr int kIdBits =
    23;  // of id + 1; the others are of the hash and tell most texts apart without a look at them
constexpr uint32_t kIds = (uint32_t{1} << kIdBits) - 1;
constexpr size_t kMostTexts = size_t{1} << 22;

}  // namespace

TokenIds::TokenIds(TokenTexts texts) : texts_(std::move(texts)) {
  const size_t n = texts_.size();
  check<IoError>(n <= kMostTexts, "tokenizer: must have at most ", kMostTexts, " tokens, got ", n);
  slots_.resize(std::bit_ceil(n + n / 3 + 2));
}

/// Where the text is or would be.
size_t TokenIds::place_of(std::string_view text, uint32_t& tag) const {
  const uint64_t hash = std::hash<std::string_view>{}(text);
  tag = static_cast<uint32_t>(hash >> 32) & ~kIds;
  size_t at = static_cast<size_t>(hash) & (slots_.size() - 1);
  while (slots_[at] != 0 && ((slots_[at] & ~kIds) != tag || texts_[(slots_[at] & kIds) - 1] != text))
    at = (at + 1) & (slots_.size() - 1);
  return at;
}

void TokenIds::add(size_t id) {
  uint32_t tag = 0;
  auto& slot = slots_[place_of(texts_[id], tag)];
  if (slot == 0) slot = tag | static_cast<uint32_t>(id + 1);
}

std::optional<int32_t> TokenIds::find(std::string_view text) const {
  uint32_t tag = 0;
  const auto slot = slots_[place_of(text, tag)];
  return slot == 0 ? std::nullopt : std::optional(static_cast<int32_t>((slot & kIds) - 1));
}

}  // namespace introspect::text
