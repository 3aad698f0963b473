#include "introspect/experiments/protocol.h"

#include <algorithm>

#include "introspect/core/check.h"

#include "experiments/placeholders.h"

namespace introspect::experiments {
namespace {

/// The last message of a role; -1: there is none.
int64_t last_of(const std::vector<text::Message>& turns, const std::string& role) {
  for (auto at = static_cast<int64_t>(turns.size()) - 1; at >= 0; --at)
    if (turns[static_cast<size_t>(at)].role == role) return at;
  return -1;
}

}  // namespace

void fill(std::vector<text::Message>& turns, const std::string& placeholder, const std::string& text) {
  for (auto& turn : turns) {
    const auto at = turn.content.find(placeholder);
    if (at != std::string::npos) turn.content.replace(at, placeholder.size(), text);
  }
}

std::string conversation_names(const Protocol& protocol) {
  return protocol.control ? concat("'", kOwnConversation, "' or '", protocol.control_name, "'")
                          : concat("'", kOwnConversation, "'");
}

std::string Paraphrase::label() const {
  if (!name.empty()) return name;
  return prefix.empty() ? question : concat(question, " / ", prefix);
}

std::string Protocol::own_question() const {
  const auto at = last_of(conversation.turns, "user");
  return at < 0 ? name : conversation.turns[static_cast<size_t>(at)].content;
}

Conversation Protocol::put(const Paraphrase& paraphrase) const {
  auto out = conversation;
  const auto write = [&](const char* role, const std::string& text) {
    if (const auto at = last_of(out.turns, role); at >= 0) out.turns[static_cast<size_t>(at)].content = text;
  };
  write("user", paraphrase.question);
  if (!paraphrase.prefix.empty()) write("assistant", paraphrase.prefix);
  return out;
}

bool Protocol::has_passages(int64_t turn) const {
  return std::any_of(conversation.passages.begin(), conversation.passages.end(),
                     [&](const auto& passage) { return passage.turn == turn; });
}

Conversation Protocol::other(const std::string& word) const {
  auto out = conversation;
  out.turns = other_turns;
  const auto found = concept_texts.find(word);
  fill(out.turns, kConcept, found == concept_texts.end() ? word : found->second);
  return out;
}

std::string Protocol::swapped(const std::string& word) const {
  const auto found = concept_texts.find(word);
  std::vector<text::Message> out{{"user", swap_text}};
  fill(out, kConcept, found == concept_texts.end() ? word : found->second);
  return out.front().content;
}

bool adds_vectors(Inject inject) {
  return inject == Inject::vector || inject == Inject::random;
}

bool replaces_activations(Inject inject) {
  return inject == Inject::patch || inject == Inject::swap;
}

Conversation Protocol::ask(const std::string& question) const {
  check<ConfigError>(control.has_value(), "protocol '", name,
                     "': it has no controls with turns to put a question into, got '", question, "'");
  auto out = *control;
  fill(out.turns, kQuestion, question);
  return out;
}

Conversation Protocol::ask(const std::string& question, const std::string& where) const {
  check<ConfigError>(!control_wording.empty(), "protocol '", name,
                     "': it has no controls, so no control question can be asked, got '", question, "'");
  if (where != kOwnConversation) {
    check<ConfigError>(control && where == control_name, "protocol '", name, "': controls can be asked in ",
                       conversation_names(*this), ", got '", where, "'");
    return ask(question);
  }
  const auto at = last_of(conversation.turns, "user");
  check<ConfigError>(at >= 0, "protocol '", name,
                     "': controls need a user message whose place they can take, and the turns have none");
  check<ConfigError>(!has_passages(at), "protocol '", name, "': controls would take the place of message ",
                     at,
                     ", which holds injected passages: give them turns of their own and say so (asked_in)");
  std::vector<text::Message> turn{{"user", control_wording}};
  fill(turn, kQuestion, question);
  auto out = conversation;
  out.turns[static_cast<size_t>(at)] = turn.front();
  return out;
}

bool Protocol::is_own(const std::string& where) const {
  if (where == kOwnConversation) return true;
  const auto at = last_of(conversation.turns, "user");
  if (at < 0 || has_passages(at)) return false;
  const auto ours = ask(kQuestion, kOwnConversation), theirs = ask(kQuestion, where);
  const auto same = [](const text::Message& a, const text::Message& b) {
    return a.role == b.role && a.content == b.content;
  };
  return std::equal(ours.turns.begin(), ours.turns.end(), theirs.turns.begin(), theirs.turns.end(), same) &&
         ours.injected == theirs.injected && ours.passages == theirs.passages;
}

Protocol Protocol::with_controls_in(const Protocol& other) const {
  auto out = *this;
  if (out.control_wording.empty()) out.control_wording = kQuestion;
  auto there = other;
  there.control_wording = out.control_wording;
  out.control = there.ask(kQuestion, kOwnConversation);
  out.control_name = other.name;
  out.controls_in = other.name;
  return out;
}

}  // namespace introspect::experiments
