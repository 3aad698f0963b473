#include "text/added_vocabulary.h"

#include <algorithm>
#include <utility>

namespace introspect::text {

bool same_flags(const AddedToken& a, const AddedToken& b) {
  return a.special == b.special && a.normalized == b.normalized && a.single_word == b.single_word &&
         a.lstrip == b.lstrip && a.rstrip == b.rstrip;
}

bool AddedVocabulary::has(const AddedToken& token) const {
  const auto found = ids_.find(token.content);
  return found != ids_.end() && same_flags(tokens_.at(found->second), token);
}

std::optional<int64_t> AddedVocabulary::add(AddedToken token) {
  if (token.content.empty()) return std::nullopt;
  if (token.special) special_.insert(token.content);
  if (const auto known = ids_.find(token.content); known != ids_.end()) {
    token.id = known->second;
  } else if (const auto own = find_(token.content)) {
    token.id = *own;
  } else {
    token.id = tokens_.empty() ? size_ : std::max(size_, tokens_.rbegin()->first + 1);
  }
  const int64_t id = token.id;
  ids_[token.content] = id;
  tokens_[id] = std::move(token);
  return id;
}

std::optional<int64_t> AddedVocabulary::id_of(const std::string& content) const {
  const auto found = ids_.find(content);
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::vector<AddedToken> AddedVocabulary::tokens() const {
  std::vector<AddedToken> all;
  all.reserve(tokens_.size());
  for (const auto& [id, token] : tokens_) all.push_back(token);
  return all;
}

}  // namespace introspect::text
