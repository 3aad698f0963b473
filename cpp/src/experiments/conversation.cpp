#include <algorithm>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/experiments/protocol.h"

namespace introspect::experiments {
namespace {

std::string pieces(const text::Tokenizer& tokenizer, const std::vector<int64_t>& ids) {
  std::string out;
  for (const auto id : ids) out += concat(out.empty() ? "" : " ", "'", tokenizer.id_to_token(id), "'");
  return out.empty() ? "none" : out;
}

/// How a SentencePiece vocabulary spells a text inside a sentence; encoding it alone would put a space before it.
std::string sentencepiece_spelling(std::string text) {
  for (size_t at = 0; (at = text.find(' ', at)) != std::string::npos;) text.replace(at, 1, "\u2581");
  return text;
}

bool is_sentencepiece(const text::Tokenizer& tokenizer) {
  return tokenizer.kind().rfind("SentencePiece", 0) == 0;
}

using Ids = std::vector<int64_t>;
using Spans = std::vector<std::pair<int64_t, int64_t>>;

/// A conversation's text and tokens, and where in them its messages are.
class Rendered {
 public:
  Rendered(const Conversation& conversation, const text::Tokenizer& tokenizer, const text::ChatTemplate& chat)
      : turns_(conversation.turns),
        tokenizer_(tokenizer),
        chat_(chat),
        text_(text_of_first(n_turns())),
        ids_(tokenizer.encode(text_, /*add_special_tokens=*/false)) {}

  const Ids& ids() const { return ids_; }

  /// Where message i begins, in tokens. Throws unless the tokens before it are those of the shorter conversation.
  int64_t first_token_of(int64_t i) const {
    if (i == 0) return 0;
    if (i == n_turns()) return static_cast<int64_t>(ids_.size());
    const auto before = tokenizer_.encode(text_of_first(i), /*add_special_tokens=*/false);
    check<ConfigError>(before.size() <= ids_.size() && std::equal(before.begin(), before.end(), ids_.begin()),
                       "tokenize: the chat template ", chat_.name(), " changes the text before message ", i,
                       ", so the conversation cannot be cut there");
    return static_cast<int64_t>(before.size());
  }

  /// The tokens of a passage, whose text is looked for from byte `from` on, which is moved to its end.
  std::pair<int64_t, int64_t> tokens_of(const Passage& passage, size_t& from) const {
    const auto start = std::max(from, text_of_first(passage.turn).size());
    const auto at = text_.find(passage.text, start);
    const auto end = passage.turn + 1 == n_turns() ? text_.size() : text_of_first(passage.turn + 1).size();
    check<ConfigError>(at != std::string::npos && at + passage.text.size() <= end, "tokenize: message ",
                       passage.turn, " must hold the passage '", passage.text,
                       "' after the one before it; it does not");
    from = at + passage.text.size();
    const std::pair span{tokens_within(at), tokens_within(from)};
    check<ConfigError>(span.first < span.second, "tokenize: the passage '", passage.text, "' of message ",
                       passage.turn, " must have a token of its own, got none");
    return span;
  }

 private:
  int64_t n_turns() const { return static_cast<int64_t>(turns_.size()); }

  std::string text_of_first(int64_t count) const {
    if (count == 0) return {};
    const bool open_end = turns_.back().role == "assistant";
    text::ChatOptions options;
    options.continue_final_message = count == n_turns() && open_end;
    options.add_generation_prompt = count == n_turns() && !open_end;
    return chat_.render({turns_.begin(), turns_.begin() + count}, options);
  }

  /// How many tokens stand wholly within the first `n` bytes.
  int64_t tokens_within(size_t n) const {
    const auto part = tokenizer_.encode(text_.substr(0, n), /*add_special_tokens=*/false);
    const auto [a, b] = std::mismatch(part.begin(), part.end(), ids_.begin(), ids_.end());
    return a - part.begin();
  }

  const std::vector<text::Message>& turns_;
  const text::Tokenizer& tokenizer_;
  const text::ChatTemplate& chat_;
  std::string text_;
  Ids ids_;
};

}  // namespace

ConversationTokens tokenize(const Conversation& conversation, const text::Tokenizer& tokenizer,
                            const text::ChatTemplate& chat) {
  const Rendered rendered(conversation, tokenizer, chat);
  Spans spans;
  size_t from = 0;
  for (const auto& passage : conversation.passages) spans.push_back(rendered.tokens_of(passage, from));
  const auto& injected = conversation.injected;
  for (size_t i = 0, next = 0; i < injected.size(); i = next) {
    for (next = i + 1; next < injected.size() && injected[next] == injected[next - 1] + 1;) ++next;
    const auto end = injected[next - 1] + 1;
    spans.emplace_back(rendered.first_token_of(injected[i]), rendered.first_token_of(end));
    check<ConfigError>(spans.back().first < spans.back().second, "tokenize: messages ", injected[i], " to ",
                       end - 1, " must have tokens to inject into, got none");
  }
  const auto first = spans.front().first, last = spans.back().second;
  for (auto& [begin, end] : spans) begin -= first, end -= first;
  const auto at = rendered.ids().begin();
  return {{at, at + first}, {at + first, at + last}, {at + last, rendered.ids().end()}, spans};
}

int64_t single_token(const text::Tokenizer& tokenizer, const std::string& text) {
  if (is_sentencepiece(tokenizer)) {
    const auto id = tokenizer.token_to_id(sentencepiece_spelling(text));
    check<ConfigError>(id.has_value(), "single_token: '", text, "' must be one token of this model, got ",
                       pieces(tokenizer, tokenizer.encode(text, false)));
    return *id;
  }
  const auto ids = tokenizer.encode(text, /*add_special_tokens=*/false);
  check<ConfigError>(ids.size() == 1, "single_token: '", text, "' must be one token of this model, got ",
                     pieces(tokenizer, ids));
  return ids[0];
}

int64_t first_token(const text::Tokenizer& tokenizer, const std::string& text) {
  check<ConfigError>(!text.empty(), "first_token: the word must not be empty");
  if (is_sentencepiece(tokenizer)) {
    const auto spelling = sentencepiece_spelling(text);
    for (auto length = spelling.size(); length > 0; --length)
      if (const auto id = tokenizer.token_to_id(spelling.substr(0, length))) return *id;
  }
  return tokenizer.encode(text, /*add_special_tokens=*/false).at(0);
}

}  // namespace introspect::experiments
