#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/added_tokens.h"

namespace introspect::text {

/// Whether two tokens have the flags of transformers' AddedToken alike.
bool same_flags(const AddedToken& a, const AddedToken& b);

/// The tokens that are added to a model's own vocabulary, numbered as the tokenizers library numbers them: one that the
/// model has keeps the model's id, any other gets the next id after the highest, whatever id a file gives it.
class AddedVocabulary {
 public:
  using Find = std::function<std::optional<int64_t>(const std::string&)>;

  /// `find` gives the ids of the model's own `size` tokens.
  AddedVocabulary(int64_t size, Find find) : size_(size), find_(std::move(find)) {}

  /// Adds a token or, if it is there with other flags, replaces these; returns its id. `token.id` is not read.
  std::optional<int64_t> add(AddedToken token);

  /// Whether a token is there with exactly these flags.
  bool has(const AddedToken& token) const;
  bool contains(const std::string& content) const { return ids_.contains(content); }

  std::optional<int64_t> id_of(const std::string& content) const;

  /// With their ids.
  std::vector<AddedToken> tokens() const;
  /// Tokens that were ever added as special: those a decoded text leaves out on request.
  const std::unordered_set<std::string>& special() const { return special_; }

 private:
  int64_t size_;
  Find find_;
  std::map<int64_t, AddedToken> tokens_;  // by id
  std::unordered_map<std::string, int64_t> ids_;
  std::unordered_set<std::string> special_;
};

}  // namespace introspect::text
