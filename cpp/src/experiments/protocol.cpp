#include "introspect/experiments/protocol.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/file.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;

constexpr auto kQuestion = "$QUESTION";
const std::map<std::string, Read> kReads{
    {"yes_no", Read::yes_no}, {"content", Read::content}, {"sample", Read::sample}};

/// A value inside the file together with its place, so that every complaint can name it.
class Field {
 public:
  Field(const Json& json, std::string protocol, std::string place)
      : json_(json), protocol_(std::move(protocol)), place_(std::move(place)) {}

  template <typename... Parts>
  void require(bool ok, const Parts&... parts) const {
    check<ConfigError>(ok, "protocol '", protocol_, "': ", place_, place_.empty() ? "" : " ", parts...);
  }
  bool has(const std::string& key) const { return json_.contains(key); }
  Field at(const std::string& key) const {
    const auto place = place_.empty() ? key : place_ + "." + key;
    check<ConfigError>(has(key), "protocol '", protocol_, "': ", place, " is missing");
    return {json_.at(key), protocol_, place};
  }
  Field at(size_t index) const { return {json_.at(index), protocol_, concat(place_, "[", index, "]")}; }

  const Field& object(const std::set<std::string>& known) const {
    require(json_.is_object(), "must be an object, got ", json_.type_name());
    for (const auto& [key, value] : json_.items())
      require(known.count(key) > 0, "has an unknown field '", key, "'");
    return *this;
  }
  size_t list() const {
    require(json_.is_array(), "must be a list, got ", json_.type_name());
    require(!json_.empty(), "must not be empty");
    return json_.size();
  }
  std::string text() const {
    require(json_.is_string(), "must be text, got ", json_.type_name());
    return json_.get<std::string>();
  }
  std::string some_text() const {
    require(!text().empty(), "must not be empty");
    return text();
  }
  bool boolean() const {
    require(json_.is_boolean(), "must be true or false, got ", json_.type_name());
    return json_.get<bool>();
  }
  int64_t integer() const {
    require(json_.is_number_integer(), "must be a whole number, got ", json_.dump());
    return json_.get<int64_t>();
  }
  double number() const {
    require(json_.is_number() && std::isfinite(json_.get<double>()), "must be a number, got ", json_.dump());
    return json_.get<double>();
  }
  const Json& json() const { return json_; }

 private:
  const Json& json_;
  std::string protocol_, place_;
};

Conversation parse_conversation(const Field& field) {
  static const std::set<std::string> roles{"system", "user", "assistant"};
  Conversation out;
  const auto turns = field.at("turns");
  for (size_t i = 0, n = turns.list(); i < n; ++i) {
    const auto turn = turns.at(i);
    turn.object({"role", "content"});
    const auto role = turn.at("role");
    role.require(roles.count(role.text()) > 0, "must be system, user or assistant, got '", role.text(), "'");
    out.turns.push_back({role.text(), turn.at("content").text()});
  }
  const auto injected = field.at("injected");
  const auto n_turns = static_cast<int64_t>(out.turns.size());
  for (size_t i = 0, n = injected.list(); i < n; ++i) {
    const auto index = injected.at(i);
    index.require(index.integer() >= 0 && index.integer() < n_turns, "must be the index of one of the ",
                  n_turns, " turns (0 to ", n_turns - 1, "), got ", index.integer());
    index.require(out.injected.empty() || index.integer() == out.injected.back() + 1,
                  "must be the neighbour after ", out.injected.empty() ? 0 : out.injected.back(), ", got ",
                  index.integer());
    out.injected.push_back(index.integer());
  }
  return out;
}

Sampling parse_sampling(const Field& field) {
  field.object({"max_new_tokens", "temperature", "top_p", "top_k"});
  Sampling out;
  if (field.has("max_new_tokens")) out.max_new_tokens = field.at("max_new_tokens").integer();
  if (field.has("temperature")) out.temperature = field.at("temperature").number();
  if (field.has("top_p")) out.top_p = field.at("top_p").number();
  if (field.has("top_k")) out.top_k = field.at("top_k").integer();
  field.require(out.max_new_tokens >= 1, "needs max_new_tokens of at least 1, got ", out.max_new_tokens);
  field.require(out.temperature >= 0, "needs a temperature of 0 or more, got ", out.temperature);
  field.require(out.top_p > 0 && out.top_p <= 1, "needs a top_p above 0 and up to 1, got ", out.top_p);
  field.require(out.top_k >= 0, "needs a top_k of 0 or more, got ", out.top_k);
  return out;
}

void parse_controls(const Field& field, Protocol& protocol) {
  field.object({"source", "turns", "injected", "questions"});
  protocol.control = parse_conversation(field);
  const auto& turns = protocol.control->turns;
  field.require(
      std::any_of(turns.begin(), turns.end(),
                  [](const auto& turn) { return turn.content.find(kQuestion) != std::string::npos; }),
      "needs ", kQuestion, " in one of its turns");
  const auto questions = field.at("questions");
  for (size_t i = 0, n = questions.list(); i < n; ++i)
    protocol.control_questions.push_back(questions.at(i).some_text());
}

Json parse_json(const std::string& text, const std::string& where) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& problem) {
    throw ConfigError(concat("protocol ", where, ": not JSON: ", problem.what()));
  }
}

Protocol from_json(const Json& json) {
  check<ConfigError>(json.is_object(), "protocol: the file must hold a JSON object, got ", json.type_name());
  Protocol out;
  out.name = Field(json, "", "").at("name").some_text();
  const Field field(json, out.name, "");
  field.object({"name", "source", "turns", "injected", "read", "steer_generation", "yes_token", "no_token",
                "report_tokens", "sampling", "controls"});
  if (field.has("source")) out.source = field.at("source").text();
  out.conversation = parse_conversation(field);
  if (field.has("read")) {
    const auto read = field.at("read");
    const auto found = kReads.find(read.text());
    read.require(found != kReads.end(), "must be yes_no, content or sample, got '", read.text(), "'");
    out.read = found->second;
  }
  if (field.has("steer_generation")) out.steer_generation = field.at("steer_generation").boolean();
  if (field.has("yes_token")) out.yes_token = field.at("yes_token").some_text();
  if (field.has("no_token")) out.no_token = field.at("no_token").some_text();
  field.require(out.yes_token != out.no_token, "yes_token and no_token must differ, got '", out.yes_token,
                "' twice");
  if (field.has("report_tokens")) {
    const auto words = field.at("report_tokens");
    words.require(words.json().is_object(), "must be an object, got ", words.json().type_name());
    for (const auto& [concept_name, word] : words.json().items())
      out.report_tokens.emplace(concept_name, words.at(concept_name).some_text());
  }
  if (field.has("sampling")) out.sampling = parse_sampling(field.at("sampling"));
  if (field.has("controls")) parse_controls(field.at("controls"), out);
  return out;
}

Json conversation_json(const Conversation& conversation) {
  Json turns = Json::array();
  for (const auto& turn : conversation.turns)
    turns.push_back({{"role", turn.role}, {"content", turn.content}});
  return {{"turns", turns}, {"injected", conversation.injected}};
}

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

}  // namespace

std::string to_string(Read read) {
  for (const auto& [name, value] : kReads)
    if (value == read) return name;
  throw std::invalid_argument("to_string: not a Read");
}

Protocol Protocol::parse(const std::string& json) {
  const auto parsed = parse_json(json, "");
  const bool is_name = parsed.is_object() && parsed.contains("controls") && parsed["controls"].is_string();
  check<ConfigError>(!is_name,
                     "protocol: controls must be an object here; only a file can name a file beside it");
  return from_json(parsed);
}

Protocol Protocol::load(const std::filesystem::path& path) {
  auto json = parse_json(io::read_text(path), path.string());
  if (json.is_object() && json.contains("controls") && json["controls"].is_string()) {
    const auto beside = path.parent_path() / json["controls"].get<std::string>();
    json["controls"] = parse_json(io::read_text(beside), beside.string());
  }
  return from_json(json);
}

std::string Protocol::to_json() const {
  Json json{{"name", name}, {"source", source}};
  json.update(conversation_json(conversation));
  json.update({{"read", to_string(read)},
               {"steer_generation", steer_generation},
               {"yes_token", yes_token},
               {"no_token", no_token},
               {"report_tokens", report_tokens.empty() ? Json::object() : Json(report_tokens)},
               {"sampling",
                {{"max_new_tokens", sampling.max_new_tokens},
                 {"temperature", sampling.temperature},
                 {"top_p", sampling.top_p},
                 {"top_k", sampling.top_k}}}});
  if (control) {
    json["controls"] = conversation_json(*control);
    json["controls"]["questions"] = control_questions;
  }
  return json.dump(1);
}

std::string Protocol::hash() const {
  return sha256_hex(to_json());
}

std::string Protocol::own_question() const {
  const auto& turns = conversation.turns;
  const auto last =
      std::find_if(turns.rbegin(), turns.rend(), [](const auto& turn) { return turn.role == "user"; });
  return last == turns.rend() ? name : last->content;
}

Conversation Protocol::ask(const std::string& question) const {
  check<ConfigError>(control.has_value(), "protocol '", name,
                     "': it has no controls to put a question into, got '", question, "'");
  auto out = *control;
  for (auto& turn : out.turns) {
    const auto at = turn.content.find(kQuestion);
    if (at != std::string::npos) turn.content.replace(at, std::string(kQuestion).size(), question);
  }
  return out;
}

ConversationTokens tokenize(const Conversation& conversation, const text::Tokenizer& tokenizer,
                            const text::ChatTemplate& chat) {
  const auto& turns = conversation.turns;
  const auto n_turns = static_cast<int64_t>(turns.size());
  const bool open_end = turns.back().role == "assistant";
  const auto ids_of_first = [&](int64_t count) -> std::vector<int64_t> {
    if (count == 0) return {};
    text::ChatOptions options;
    options.continue_final_message = count == n_turns && open_end;
    options.add_generation_prompt = count == n_turns && !open_end;
    return tokenizer.encode(chat.render({turns.begin(), turns.begin() + count}, options),
                            /*add_special_tokens=*/false);
  };
  const auto first = conversation.injected.front(), end = conversation.injected.back() + 1;
  const auto before = ids_of_first(first), through = ids_of_first(end), whole = ids_of_first(n_turns);
  const auto rest = [&](const std::vector<int64_t>& longer, const std::vector<int64_t>& shorter, int64_t at) {
    check<ConfigError>(
        shorter.size() <= longer.size() && std::equal(shorter.begin(), shorter.end(), longer.begin()),
        "tokenize: the chat template ", chat.name(), " changes the text before message ", at,
        ", so the conversation cannot be cut there");
    return std::vector<int64_t>(longer.begin() + static_cast<int64_t>(shorter.size()), longer.end());
  };
  ConversationTokens out{before, rest(through, before, first), rest(whole, through, end)};
  check<ConfigError>(!out.injected.empty(), "tokenize: messages ", first, " to ", end - 1,
                     " must have tokens to inject into, got none");
  return out;
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
