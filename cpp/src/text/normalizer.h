#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace introspect::text {

/// What is done to a text before it is split, in order. The names are those of tokenizer.json.
struct Nfc {};
struct Prepend {
  std::string text;  // not to an empty text
};
struct Replace {
  std::string from, to;
};
using Normalizer = std::vector<std::variant<Nfc, Prepend, Replace>>;

std::string normalize(const Normalizer& normalizer, std::string_view text);

}  // namespace introspect::text
