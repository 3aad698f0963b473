#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/text/chat.h"
#include "introspect/text/tokenizer.h"

namespace introspect::experiments {

/// What is read after the last message. The log-odds of yes against no are taken in every case.
enum class Read {
  yes_no,   ///< log-odds and probabilities of the yes and no tokens
  content,  ///< also the log-probability and rank of every concept's token
  sample,   ///< also the text that follows
};

/// A conversation of which some messages are injected.
struct Conversation {
  std::vector<text::Message> turns;
  std::vector<int64_t> injected;  ///< message indices, neighbours and ascending: one span of the conversation
};

/// How the text of a "sample" protocol is drawn.
struct Sampling {
  int64_t max_new_tokens = 40;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  int64_t top_k = 0;  ///< 0 is no limit
};

/// One introspection experiment as data: turns, the injected messages, what is read, and control questions.
///
/// A file is a JSON object. Fields marked * are required; an unknown field is an error.
///
///     "name" *          non-empty text
///     "source"          where the texts come from
///     "turns" *         list of {"role": "system" | "user" | "assistant", "content": text}. A last message of the
///                       assistant is a prefix that stays unfinished; after one of the user the generation prompt follows
///     "injected" *      list of indices into turns: neighbours, ascending, at least one
///     "read"            "yes_no" (default), "content" or "sample"
///     "steer_generation"  true keeps the vector on after the injected messages and while text is sampled (default false)
///     "yes_token", "no_token"  one token each; default " yes" and " no"
///     "report_tokens"   {concept: text}: the word read for a concept in "content"; default: the concept's name
///     "sampling"        {"max_new_tokens", "temperature", "top_p", "top_k"}
///     "controls"        {"turns" *, "injected" *, "questions" *: list of texts}, or the name of a JSON file beside this
///                       one that holds such an object. $QUESTION in its turns stands for the question
struct Protocol {
  std::string name;
  std::string source;
  Conversation conversation;
  Read read = Read::yes_no;
  bool steer_generation = false;
  std::string yes_token = " yes";
  std::string no_token = " no";
  std::map<std::string, std::string> report_tokens;
  Sampling sampling;
  std::optional<Conversation> control;  ///< with $QUESTION in a turn
  std::vector<std::string> control_questions;

  /// Throws ConfigError that names the place ("protocol 'x': turns[2].role must be ..., got ...").
  INTROSPECT_EXPORT static Protocol parse(const std::string& json);
  /// Throws IoError when the file or its controls cannot be read, ConfigError as parse does.
  INTROSPECT_EXPORT static Protocol load(const std::filesystem::path& path);

  /// The protocol in the file's format, with the controls inside. parse(to_json()) is the same protocol.
  INTROSPECT_EXPORT std::string to_json() const;
  /// Hex SHA-256 of to_json().
  INTROSPECT_EXPORT std::string hash() const;
  /// The last message of the user: how the protocol's own question is named in results.
  INTROSPECT_EXPORT std::string own_question() const;
  /// The control conversation with the question in its place. Throws ConfigError without a control conversation.
  INTROSPECT_EXPORT Conversation ask(const std::string& question) const;
};

INTROSPECT_EXPORT std::string to_string(Read read);

/// A conversation as token ids, cut where the chat template ends the messages.
struct ConversationTokens {
  std::vector<int64_t> before;    ///< up to the first injected message
  std::vector<int64_t> injected;  ///< the injected messages
  std::vector<int64_t> after;     ///< the rest, down to the position that is read
};

/// Renders and cuts. The ids together are those of the whole text, special tokens as the template writes them.
///
/// Throws ConfigError where a message changes the tokens before it (a template that rewrites earlier turns), or
/// where the injected span or the rest has no token of its own.
INTROSPECT_EXPORT ConversationTokens tokenize(const Conversation& conversation,
                                              const text::Tokenizer& tokenizer,
                                              const text::ChatTemplate& chat);

/// The id of a text that is one token. Throws ConfigError naming the tokens it falls into otherwise.
INTROSPECT_EXPORT int64_t single_token(const text::Tokenizer& tokenizer, const std::string& text);

/// The id of the first token of a word: the whole word where the vocabulary has it.
INTROSPECT_EXPORT int64_t first_token(const text::Tokenizer& tokenizer, const std::string& text);

}  // namespace introspect::experiments
