#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
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

/// Part of a message: the first place where its text stands there.
struct Passage {
  int64_t turn = 0;
  std::string text;
  bool operator==(const Passage&) const = default;
};

/// A conversation of which some messages, or passages of them, are injected.
struct Conversation {
  std::vector<text::Message> turns;
  std::vector<int64_t>
      injected;  ///< message indices, ascending; what the template writes around them is part of them
  std::vector<Passage> passages;  ///< instead of whole messages: in the order in which they stand
};

/// What the injected spans get.
enum class Inject {
  vector,  ///< the vector, added to the outputs of the range's blocks
  random,  ///< independent random directions of the vector's lengths in its place
  model,   ///< nothing is added: another model prefills them
  tokens,  ///< nothing is added: they are written otherwise, with the concept's word in them (priming)
  patch,   ///< the outputs of the range's blocks are replaced by those of another conversation
};

/// How the text of a "sample" protocol is drawn.
struct Sampling {
  int64_t max_new_tokens = 40;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  int64_t top_k = 0;  ///< 0 is no limit
};

/// What is read beside the log-odds at the read position.
struct Readouts {
  bool lens = false;        ///< log-odds, probabilities and report tokens at every block's output
  bool attention = false;   ///< of every head to the injected spans
  bool divergence = false;  ///< entropy, and KL(injected || base)
  int64_t top_k = 0;        ///< this many most raised and lowered tokens
  bool operator==(const Readouts&) const = default;
};

/// The protocol's own question in other words, or with another beginning of the answer.
struct Paraphrase {
  std::string question;  ///< the last message of the user
  std::string prefix;    ///< the last message of the assistant; empty: as in the turns
};

/// One introspection experiment as data: turns, the injected spans, what is read, and control questions.
///
/// A file is a JSON object. Fields marked * are required; an unknown field is an error.
///
///     "name" *          non-empty text
///     "based_on"        name of a file beside this one, whose fields hold where this one does not give them
///     "source"          where the texts come from
///     "turns" *         list of {"role": "system" | "user" | "assistant", "content": text}. A last message of the
///                       assistant is a prefix that stays unfinished; after one of the user the generation prompt follows
///     "injected" *      list of indices into turns, ascending; or of {"turn": index, "text": passage of that message}
///     "inject"          {"by": "vector" (default) | "random" | "model" | "tokens" | "patch"}, and for "model" its "model"
///                       (a name among those of the run), for "tokens" and "patch" the other conversation's "turns" with
///                       $CONCEPT in one of them: as many messages, differing in the injected ones only
///     "relative_strength"  factor on the strengths of a run (default 1)
///     "read"            "yes_no" (default), "content" or "sample"
///     "readouts"        {"lens", "attention", "divergence": true or false, "top_k": number}
///     "steer_generation"  true keeps the vector on after the injected spans and while text is sampled (default false)
///     "yes_token", "no_token"  one token each; default " yes" and " no"
///     "yes_variants", "no_variants"  spellings whose probabilities the lens sums up, those that are one token of the
///                       model; default: the token alone
///     "report_tokens"   {concept: text}: the word read for a concept in "content"; default: the concept's name
///     "paraphrases"     list of texts, or of {"question", "prefix"}: each is asked instead of the last user message
///     "sentences"       list of texts instead of "injected": $SENTENCES in a turn stands for them, each in a line behind its
///                       answer (or number), and each is a passage
///     "answers"         one token each, as many as passages: localisation. Each passage is injected alone, and these
///                       tokens are read: which of them was it
///     "sampling"        {"max_new_tokens", "temperature", "top_p", "top_k"}
///     "controls"        {"turns" *, "injected" *, "questions" *: list of texts}, or the name of a JSON file beside this
///                       one that holds such an object. $QUESTION in its turns stands for the question
struct Protocol {
  std::string name;
  std::string source;
  Conversation conversation;
  Inject inject = Inject::vector;
  std::string prefill_model;               ///< of Inject::model
  std::vector<text::Message> other_turns;  ///< of Inject::tokens and patch, with $CONCEPT
  double relative_strength = 1.0;
  Read read = Read::yes_no;
  Readouts readouts;
  bool steer_generation = false;
  std::string yes_token = " yes";
  std::string no_token = " no";
  std::vector<std::string> yes_variants, no_variants;  ///< empty: the token alone
  std::map<std::string, std::string> report_tokens;
  std::vector<Paraphrase> paraphrases;  ///< empty: the turns as they stand
  std::vector<std::string> answers;     ///< of a localisation: one for each passage, which is injected alone
  Sampling sampling;
  std::optional<Conversation> control;  ///< with $QUESTION in a turn
  std::vector<std::string> control_questions;

  /// Throws ConfigError that names the place ("protocol 'x': turns[2].role must be ..., got ...").
  INTROSPECT_EXPORT static Protocol parse(const std::string& json);
  /// Throws IoError when the file or one that it names cannot be read, ConfigError as parse does.
  INTROSPECT_EXPORT static Protocol load(const std::filesystem::path& path);

  /// The protocol in the file's format, with the controls inside. parse(to_json()) is the same protocol.
  INTROSPECT_EXPORT std::string to_json() const;
  /// Hex SHA-256 of to_json().
  INTROSPECT_EXPORT std::string hash() const;
  /// The last message of the user: how the protocol's own question is named in results.
  INTROSPECT_EXPORT std::string own_question() const;
  /// The conversation with another question and prefix in the places of its last messages.
  INTROSPECT_EXPORT Conversation put(const Paraphrase& paraphrase) const;
  /// The other conversation with a concept's word in its place, injected at the same messages.
  INTROSPECT_EXPORT Conversation other(const std::string& word) const;
  /// The control conversation with the question in its place. Throws ConfigError without a control conversation.
  INTROSPECT_EXPORT Conversation ask(const std::string& question) const;
};

INTROSPECT_EXPORT std::string to_string(Read read);

INTROSPECT_EXPORT std::string to_string(Inject inject);

/// A conversation as token ids, cut where the chat template ends the messages.
struct ConversationTokens {
  std::vector<int64_t> before;    ///< up to the first injected token
  std::vector<int64_t> injected;  ///< from there to the last injected one
  std::vector<int64_t> after;     ///< the rest, down to the position that is read

  /// The injected spans [first, last) within `injected`: neighbouring messages are one span, passages one each.
  std::vector<std::pair<int64_t, int64_t>> spans;
};

/// Renders and cuts. The ids together are those of the whole text, special tokens as the template writes them.
///
/// A token that holds the beginning of a passage belongs to it; one that holds its end and what follows does not.
/// Throws ConfigError where a message changes the tokens before it (a template that rewrites earlier turns), where a
/// passage does not stand in its message, or where a span has no token of its own.
INTROSPECT_EXPORT ConversationTokens tokenize(const Conversation& conversation,
                                              const text::Tokenizer& tokenizer,
                                              const text::ChatTemplate& chat);

/// The id of a text that is one token. Throws ConfigError naming the tokens it falls into otherwise.
INTROSPECT_EXPORT int64_t single_token(const text::Tokenizer& tokenizer, const std::string& text);

/// The id of the first token of a word: the whole word where the vocabulary has it.
INTROSPECT_EXPORT int64_t first_token(const text::Tokenizer& tokenizer, const std::string& text);

}  // namespace introspect::experiments
