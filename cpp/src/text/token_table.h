#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "introspect/core/check.h"

namespace introspect::text {

/// Texts by number, one after another in one piece of memory, which copies share.
class TokenTexts {
 public:
  TokenTexts() = default;

  /// text_of(i) of the numbers below n; each is asked for twice. Throws IoError for 4 GiB of text and more.
  template <typename TextOf>
  TokenTexts(size_t n, const TextOf& text_of) {
    auto data = std::make_shared<Data>();
    size_t bytes = 0;
    for (size_t i = 0; i < n; ++i) bytes += std::string_view(text_of(i)).size();
    check<IoError>(bytes <= std::numeric_limits<uint32_t>::max(),
                   "tokenizer: its tokens must have less than 4 GiB, got ", bytes, " bytes");
    data->bytes.reserve(bytes);
    data->ends.reserve(n);
    for (size_t i = 0; i < n; ++i) {
      const std::string_view text = text_of(i);
      data->bytes.insert(data->bytes.end(), text.begin(), text.end());
      data->ends.push_back(static_cast<uint32_t>(data->bytes.size()));
    }
    data_ = std::move(data);
  }

  size_t size() const { return data_ ? data_->ends.size() : 0; }

  /// Stays where it is as long as there is a copy of these texts.
  std::string_view operator[](size_t i) const {
    const uint32_t first = i == 0 ? 0 : data_->ends[i - 1];
    return {data_->bytes.data() + first, data_->ends[i] - first};
  }

 private:
  struct Data {
    std::vector<char> bytes;
    std::vector<uint32_t> ends;
  };
  std::shared_ptr<const Data> data_;
};

/// The number of a text among some of `texts`: a hash table of 4 bytes a place, where one of the library's takes 60 a text.
class TokenIds {
 public:
  TokenIds() : slots_(1) {}  // of no texts
  /// With room for all of `texts`, none of which is known yet. Throws IoError for more than 2^22.
  explicit TokenIds(TokenTexts texts);

  /// Makes texts[id] known. Of equal ones the first stays.
  void add(size_t id);
  std::optional<int32_t> find(std::string_view text) const;
  bool contains(std::string_view text) const { return find(text).has_value(); }
  const TokenTexts& texts() const { return texts_; }

 private:
  size_t place_of(std::string_view text, uint32_t& tag) const;

  TokenTexts texts_;
  std::vector<uint32_t> slots_;  // with linear probing, a power of two: the text's tag and id + 1; 0: free
};

}  // namespace introspect::text
