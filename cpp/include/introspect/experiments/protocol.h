#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "introspect/experiments/setting.h"
#include "introspect/experiments/value.h"
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
  vector,   ///< the vector, added to the outputs of the range's blocks
  random,   ///< independent random directions of the vector's lengths in its place
  model,    ///< nothing is added: another model prefills them
  tokens,   ///< nothing is added: they are written otherwise, with the concept's word in them (priming)
  patch,    ///< the outputs of the range's blocks are replaced by those of another conversation
  noise,    ///< Gaussian directions of the vector's lengths, independent for every token and block
  dropout,  ///< elements of the range's blocks' outputs are set to zero at random
  scale,    ///< the outputs of the range's blocks times 1 + strength
  swap,     ///< the outputs of the range's blocks are replaced by those of a text in the spans' place
};

/// Whether what is injected is added, and so can be kept on after the spans.
INTROSPECT_EXPORT bool adds_vectors(Inject inject);

/// Whether it replaces activations by those of other tokens.
INTROSPECT_EXPORT bool replaces_activations(Inject inject);

/// Control questions that belong together ("factual_yes").
struct QuestionGroup {
  std::string name;
  std::vector<std::string> questions;
  bool operator==(const QuestionGroup&) const = default;
};

/// How the text of a "sample" protocol is drawn.
struct Sampling {
  int64_t max_new_tokens = 40;
  double temperature = 0.0;  ///< 0 is greedy
  double top_p = 1.0;
  int64_t top_k = 0;  ///< 0 is no limit
};

/// The protocol's own question in other words, or with another beginning of the answer.
struct Paraphrase {
  std::string question;  ///< the last message of the user
  std::string prefix;    ///< the last message of the assistant; empty: as in the turns
  std::string name{};    ///< in results; empty: the question, and the prefix where there is one

  INTROSPECT_EXPORT std::string label() const;
};

/// What the last user message itself is called among the paraphrases.
inline constexpr auto kOwnQuestion = "own";

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
///     "inject"          {"by": "vector" (default) | "random" | "model" | "tokens" | "patch" | "noise" | "dropout" |
///                       "scale" | "swap"}, and for "model" its "model" (a name among those of the run), for "tokens" and
///                       "patch" the other conversation's "turns" with $CONCEPT in one of them: as many messages,
///                       differing in the injected ones only; for "swap" a "text", which may hold $CONCEPT, and stands
///                       from its beginning again where it has fewer tokens than the spans; for "dropout" the "rate",
///                       above 0 and below 1. "texts" {concept: text} is what $CONCEPT stands for (default: the name)
///     "relative_strength"  factor on the strengths of a run (default 1)
///     "read"            "yes_no" (default), "content" or "sample"
///     "readouts"        {name: parameter}: what is read besides the log-odds (experiments/readouts.h). Of the library are
///                       "lens": true (log-odds, probabilities and report tokens at every block's output), "attention":
///                       true (of every head to the injected spans), "divergence": true (entropy, and
///                       KL(injected || base)), "top_k": number (of the most raised and lowered tokens) and
///                       "continuations": list of texts (log-probability of each after the read position)
///     "steer_generation"  true keeps the vector on after the injected spans and while text is sampled (default false)
///     "yes_token", "no_token"  one token each; default " yes" and " no"
///     "yes_variants", "no_variants"  spellings whose probabilities the lens sums up, those that are one token of the
///                       model; default: the token alone
///     "report_tokens"   {concept: text}: the word read for a concept in "content"; default: the concept's name
///     "paraphrases"     list of texts, or of {"question", "prefix", "name"}: each is asked in the place of the last user
///                       message, besides the message that stands there
///     "asks_own_question"  false: with paraphrases, the last user message itself is not asked (default true)
///     "sentences"       list of texts instead of "injected": $SENTENCES in a turn stands for them, each in a line after its
///                       answer (or number), and each is a passage
///     "answers"         one token each, as many as passages: localisation. Each passage is injected alone, and these
///                       tokens are read: which of them was it
///     "sampling"        {"max_new_tokens", "temperature", "top_p", "top_k"}
///     "controls"        {"questions" *: list of texts, "question", "turns", "injected", "name", "asked_in"}, or the name of
///                       a JSON file beside this one that holds such an object. Control questions are asked in the
///                       protocol's own conversation, in the place of its last user message: as "question" says, a text
///                       with $QUESTION (default: the turn of "turns" that holds it, or the question alone). "turns" and
///                       "injected" are another conversation, with $QUESTION in a turn, in which a run may ask them instead;
///                       "name" is its name (default "given"), and "asked_in" says where they are asked unless the run
///                       says otherwise: "own" (default) or that name. "groups" {name: list of texts} are more questions,
///                       asked in the same way, which rows name ("factual_yes", "contested", ...); with them "questions"
///                       may be left out
struct Protocol {
  std::string name;
  std::string source;
  Conversation conversation;
  Inject inject = Inject::vector;
  std::string prefill_model;               ///< of Inject::model
  std::vector<text::Message> other_turns;  ///< of Inject::tokens and patch, with $CONCEPT
  std::string swap_text;                   ///< of Inject::swap, perhaps with $CONCEPT
  std::map<std::string, std::string>
      concept_texts;          ///< what stands for $CONCEPT; not in it: the concept's name
  double dropout_rate = 0.0;  ///< of Inject::dropout
  double relative_strength = 1.0;
  Read read = Read::yes_no;
  Readouts readouts;
  bool steer_generation = false;
  std::string yes_token = " yes";
  std::string no_token = " no";
  std::vector<std::string> yes_variants, no_variants;  ///< empty: the token alone
  std::map<std::string, std::string> report_tokens;
  std::vector<Paraphrase> paraphrases;
  bool asks_own_question = true;     ///< besides the paraphrases
  std::vector<std::string> answers;  ///< of a localisation: one for each passage, which is injected alone
  Sampling sampling;
  std::vector<std::string> control_questions;
  std::vector<QuestionGroup> control_groups;  ///< besides control_questions
  std::string control_wording;                ///< with $QUESTION; empty: the protocol has no controls
  std::optional<Conversation> control;        ///< another conversation for them, with $QUESTION in a turn
  std::string control_name = "given";         ///< of that conversation
  std::optional<std::string>
      controls_in;  ///< kOwnConversation or control_name; none: the protocol does not say

  /// Throws ConfigError that names the place ("protocol 'x': turns[2].role must be ..., got ...").
  INTROSPECT_EXPORT static Protocol parse(const std::string& json);
  /// The protocol of this name that comes with the library ("no_info"; io::share_folder has them all), or a file: what
  /// has a folder in it or ends in .json is a file's path, even where a shipped protocol goes by that name.
  ///
  /// Throws IoError when the file or one that it names cannot be read, ConfigError as parse does.
  INTROSPECT_EXPORT static Protocol load(const std::filesystem::path& path_or_name);

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
  /// The text that is swapped in, with a concept's word in its place.
  INTROSPECT_EXPORT std::string swapped(const std::string& word) const;
  /// The control conversation of the file with the question in its place. Throws ConfigError where the file has none.
  INTROSPECT_EXPORT Conversation ask(const std::string& question) const;
  /// A control question in the conversation of that name: kOwnConversation, where it stands in the place of the last
  /// user message, or control_name. Throws ConfigError for another name, a protocol without controls, or an own
  /// conversation that has no user message or has injected passages in the last one.
  INTROSPECT_EXPORT Conversation ask(const std::string& question, const std::string& conversation) const;
  /// Whether the control conversation of that name is the own one but for its questions.
  INTROSPECT_EXPORT bool is_own(const std::string& conversation) const;
  /// The same protocol with another one's conversation, under its name, for the control questions.
  INTROSPECT_EXPORT Protocol with_controls_in(const Protocol& other) const;

 private:
  bool has_passages(int64_t turn) const;
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
