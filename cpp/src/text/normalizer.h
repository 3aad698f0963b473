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
/// Takes the spaces around the text away and leaves one of each run within it, as sentencepiece does.
struct SqueezeSpaces {};
/// Writes `text` twice where the text begins with it: sentencepiece puts its own in front whatever stands there.
struct RepeatAtStart {
  std::string text;
};
using Normalizer = std::vector<std::variant<Nfc, Prepend, Replace, SqueezeSpaces, RepeatAtStart>>;

/// Whether spaces in front of a text are taken away.
bool squeezes_spaces(const Normalizer& normalizer);

/// Throws ConfigError for steps that make a text more than 64 times as long (and longer than 1 MiB).
std::string normalize(const Normalizer& normalizer, std::string_view text);

}  // namespace introspect::text
