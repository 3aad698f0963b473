#pragma once

#include <cstdint>
#include <string>

namespace introspect::experiments {

/// The conversation in which control questions are asked unless something else is chosen: the protocol's own.
inline constexpr auto kOwnConversation = "own";

/// What is injected.
struct Injected {
  std::string concept_name;
  double strength = 0.0;
  int64_t first_layer = -1, last_layer = -1;  ///< inclusive; -1 where nothing is added
  int64_t null_index = -1;                    ///< 0, 1, ... for a random rotation of the vector
  int64_t place = -1;                         ///< which passage is injected alone; -1: all spans
  double part_first = 0.0, part_last = 1.0;   ///< which part of the injected tokens, as fractions
};

/// What is asked.
struct Asked {
  std::string question;       ///< the protocol's own: its last user message
  std::string question_kind;  ///< "introspection" or "control"
  /// Paraphrase::label or kOwnQuestion, "control" for control questions; empty: the protocol has no paraphrases.
  std::string paraphrase;
  /// The conversation that the question is asked in: kOwnConversation, or the name of another one.
  std::string asked_in = kOwnConversation;
  std::string group{};  ///< of questions that it belongs to ("factual_yes"); empty: to none
};

/// What a reading is of. In results, stores and tables its fields have the same names.
struct Setting : Injected, Asked {
  /// The question's kind, "random" for a random rotation of the vector; in stores also "base" (nothing is added) and
  /// "norms" (of the residual stream).
  std::string kind;
};

/// Calls visit(name, member) for every field of a setting, in the order of a result's JSON.
template <typename AnySetting, typename Visit>
void for_each_field(AnySetting& setting, const Visit& visit) {
  visit("concept", setting.concept_name);
  visit("strength", setting.strength);
  visit("first_layer", setting.first_layer);
  visit("last_layer", setting.last_layer);
  visit("question", setting.question);
  visit("question_kind", setting.question_kind);
  visit("kind", setting.kind);
  visit("null_index", setting.null_index);
  visit("asked_in", setting.asked_in);
  visit("paraphrase", setting.paraphrase);
  visit("place", setting.place);
  visit("part_first", setting.part_first);
  visit("part_last", setting.part_last);
  visit("group", setting.group);
}

}  // namespace introspect::experiments
