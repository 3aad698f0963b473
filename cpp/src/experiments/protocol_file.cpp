#include "introspect/experiments/protocol.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/file.h"
#include "introspect/io/share.h"

#include "experiments/placeholders.h"
#include "experiments/readouts/library.h"
#include "experiments/value_json.h"

namespace introspect::experiments {
namespace {

using Json = nlohmann::ordered_json;
using Field = JsonField<ConfigError>;

constexpr auto kSentences = "$SENTENCES";
const std::map<std::string, Read> kReads{
    {"yes_no", Read::yes_no}, {"content", Read::content}, {"sample", Read::sample}};
const std::map<std::string, Inject> kInjects{
    {"vector", Inject::vector},   {"random", Inject::random}, {"model", Inject::model},
    {"tokens", Inject::tokens},   {"patch", Inject::patch},   {"noise", Inject::noise},
    {"dropout", Inject::dropout}, {"scale", Inject::scale},   {"swap", Inject::swap}};

std::vector<text::Message> parse_turns(const Field& turns) {
  static const std::set<std::string> roles{"system", "user", "assistant"};
  std::vector<text::Message> out;
  for (size_t i = 0, n = turns.some_list(); i < n; ++i) {
    const auto turn = turns.at(i);
    turn.object({"role", "content"});
    const auto role = turn.at("role");
    role.require(roles.count(role.text()) > 0, "must be system, user or assistant, got ",
                 excerpt(role.text()));
    out.push_back({role.text(), turn.at("content").text()});
  }
  return out;
}

int64_t parse_index(const Field& field, int64_t n_turns) {
  const auto index = field.integer();
  field.require(index >= 0 && index < n_turns, "must be the index of one of the ", n_turns, " turns (0 to ",
                n_turns - 1, "), got ", index);
  return index;
}

void parse_injected(const Field& injected, Conversation& out) {
  const auto n_turns = static_cast<int64_t>(out.turns.size());
  for (size_t i = 0, n = injected.some_list(); i < n; ++i) {
    const auto one = injected.at(i);
    if (one.value().is_object()) {
      one.object({"turn", "text"});
      const auto turn = parse_index(one.at("turn"), n_turns);
      const auto passage = one.at("text").some_text();
      one.at("text").require(out.turns[static_cast<size_t>(turn)].content.find(passage) != std::string::npos,
                             "must stand in message ", turn, ", which does not hold ", excerpt(passage));
      one.require(out.passages.empty() || turn >= out.passages.back().turn,
                  "must not stand before the passage before it, got turn ", turn);
      out.passages.push_back({turn, passage});
    } else {
      out.injected.push_back(parse_index(one, n_turns));
      one.require(out.injected.size() == 1 || out.injected.back() > out.injected[out.injected.size() - 2],
                  "must be above the index before it, got ", out.injected.back());
    }
    one.require(out.injected.empty() || out.passages.empty(),
                "must be a message like the others or a passage like the others, not one among the other");
  }
}

Conversation parse_conversation(const Field& field) {
  Conversation out{parse_turns(field.at("turns")), {}, {}};
  parse_injected(field.at("injected"), out);
  return out;
}

bool holds(const std::vector<text::Message>& turns, const char* placeholder) {
  return std::any_of(turns.begin(), turns.end(),
                     [&](const auto& turn) { return turn.content.find(placeholder) != std::string::npos; });
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

void parse_inject(const Field& field, Protocol& protocol) {
  field.object({"by", "model", "turns", "text", "texts", "rate"});
  const auto by = field.at("by");
  const auto found = kInjects.find(by.text());
  by.require(found != kInjects.end(),
             "must be vector, random, model, tokens, patch, noise, dropout, scale or swap, got ",
             excerpt(by.text()));
  protocol.inject = found->second;
  const auto inject = protocol.inject;
  const auto belongs = [&](const char* name, bool is_taken) {
    field.require(is_taken || !field.has(name), name, " is nothing that injecting by ", by.text(), " takes");
  };
  belongs("model", inject == Inject::model);
  belongs("turns", inject == Inject::tokens || inject == Inject::patch);
  belongs("text", inject == Inject::swap);
  belongs("texts", inject == Inject::tokens || replaces_activations(inject));
  belongs("rate", inject == Inject::dropout);
  if (inject == Inject::model) protocol.prefill_model = field.at("model").some_text();
  if (inject == Inject::swap) protocol.swap_text = field.at("text").some_text();
  if (inject == Inject::dropout) {
    const auto rate = field.at("rate");
    protocol.dropout_rate = rate.number();
    rate.require(protocol.dropout_rate > 0 && protocol.dropout_rate < 1, "must be above 0 and below 1, got ",
                 protocol.dropout_rate);
  }
  if (field.has("texts"))
    field.at("texts").for_each_field([&](const std::string& concept_name, const Field& text) {
      protocol.concept_texts.emplace(concept_name, text.some_text());
    });
  if (inject != Inject::tokens && inject != Inject::patch) return;
  const auto turns = field.at("turns");
  const auto& ours = protocol.conversation;
  protocol.other_turns = parse_turns(turns);
  turns.require(protocol.other_turns.size() == ours.turns.size(), "must be as many as the protocol's ",
                ours.turns.size(), ", got ", protocol.other_turns.size());
  turns.require(holds(protocol.other_turns, kConcept), "need ", kConcept, " in one of them");
  turns.require(ours.passages.empty(), "need whole messages in injected, got passages");
  for (size_t i = 0; i < ours.turns.size(); ++i) {
    const auto &turn = ours.turns[i], &other = protocol.other_turns[i];
    const bool is_injected =
        std::count(ours.injected.begin(), ours.injected.end(), static_cast<int64_t>(i)) > 0;
    turns.at(i).require(turn.role == other.role && (is_injected || turn.content == other.content),
                        "must be the protocol's own, as it is not injected");
  }
}

Readouts parse_readouts(const Field& field) {
  Readouts out;
  field.for_each_field([&](const std::string& name, const Field& given) {
    const auto parameter = value_of(given.value());
    std::string problem;
    try {
      problem = problem_of_parameter(name, parameter);
    } catch (const ConfigError& error) {
      field.require(false, "cannot be read: ", error.what());
    }
    given.require(problem.empty(), problem);
    if (!is_off(parameter)) out[name] = parameter;
  });
  return out;
}

std::vector<std::string> parse_texts(const Field& field) {
  std::vector<std::string> out;
  for (size_t i = 0, n = field.some_list(); i < n; ++i) out.push_back(field.at(i).some_text());
  return out;
}

bool is_number(const std::string& text) {
  char* end = nullptr;
  std::strtod(text.c_str(), &end);
  return *end == '\0';
}

void parse_paraphrases(const Field& field, Protocol& protocol) {
  for (size_t i = 0, n = field.some_list(); i < n; ++i) {
    const auto one = field.at(i);
    if (one.value().is_string()) {
      protocol.paraphrases.push_back({one.some_text(), ""});
      continue;
    }
    one.object({"question", "prefix", "name"});
    const auto text = [&](const char* key) { return one.has(key) ? one.at(key).some_text() : std::string(); };
    protocol.paraphrases.push_back({one.at("question").some_text(), text("prefix"), text("name")});
    one.require(!one.has("prefix") || protocol.conversation.turns.back().role == "assistant",
                "has a prefix, but the last of the turns is not the assistant's");
  }
  std::set<std::string> labels{kOwnQuestion};
  for (size_t i = 0; i < protocol.paraphrases.size(); ++i) {
    const auto label = protocol.paraphrases[i].label();
    field.at(i).require(!is_number(label), "must have a name in words, got ", excerpt(label));
    field.at(i).require(labels.insert(label).second, "must differ from the others, got ", excerpt(label),
                        " again");
  }
}

/// Puts the sentences into the turn that waits for them; each is a passage of its own.
void parse_sentences(const Field& field, const std::vector<std::string>& answers, Conversation& out) {
  const auto sentences = parse_texts(field);
  std::string list;
  for (size_t i = 0; i < sentences.size(); ++i) {
    const auto label =
        i < answers.size() ? answers[i].substr(answers[i].find_first_not_of(' ')) : concat(i + 1);
    list += concat(i ? "\n" : "", label, ": ", sentences[i]);
  }
  for (size_t i = 0; i < out.turns.size(); ++i)
    if (out.turns[i].content.find(kSentences) != std::string::npos && out.passages.empty())
      for (const auto& sentence : sentences) out.passages.push_back({static_cast<int64_t>(i), sentence});
  field.require(!out.passages.empty(), "need ", kSentences, " in one of the turns");
  fill(out.turns, kSentences, list);
}

void check_answers(const Field& field, const Protocol& protocol) {
  const auto n = protocol.conversation.passages.size();
  field.require(n >= 2 && protocol.answers.size() == n,
                "must be as many as there are passages or sentences (", n, "), and two at least, got ",
                protocol.answers.size());
  field.require(std::set(protocol.answers.begin(), protocol.answers.end()).size() == n, "must differ");
}

/// The text of the turn that holds $QUESTION, the last one of the user's if there are several.
std::string wording_of(const Conversation& conversation) {
  const auto& turns = conversation.turns;
  const auto found = std::find_if(turns.rbegin(), turns.rend(), [](const auto& turn) {
    return turn.role == "user" && turn.content.find(kQuestion) != std::string::npos;
  });
  return found == turns.rend() ? kQuestion : found->content;
}

void parse_controls(const Field& field, Protocol& protocol) {
  field.object({"source", "name", "question", "turns", "injected", "questions", "groups", "asked_in"});
  if (field.has("turns") || field.has("injected")) {
    protocol.control = parse_conversation(field);
    field.require(holds(protocol.control->turns, kQuestion), "needs ", kQuestion, " in one of its turns");
    protocol.control_wording = wording_of(*protocol.control);
  } else {
    protocol.control_wording = kQuestion;
  }
  if (field.has("name")) {
    const auto name = field.at("name");
    protocol.control_name = name.some_text();
    name.require(protocol.control.has_value(), "is a name for turns, and there are none");
    name.require(protocol.control_name != kOwnConversation, "must not be '", kOwnConversation, "'");
  }
  if (field.has("question")) {
    const auto question = field.at("question");
    protocol.control_wording = question.some_text();
    question.require(protocol.control_wording.find(kQuestion) != std::string::npos, "needs ", kQuestion,
                     " in it");
  }
  if (field.has("asked_in")) {
    const auto where = field.at("asked_in");
    protocol.controls_in = where.text();
    where.require(*protocol.controls_in == kOwnConversation ||
                      (protocol.control && *protocol.controls_in == protocol.control_name),
                  "must be ", conversation_names(protocol), ", got ", excerpt(*protocol.controls_in));
  }
  if (field.has("questions") || !field.has("groups"))
    protocol.control_questions = parse_texts(field.at("questions"));
  if (field.has("groups"))
    field.at("groups").for_each_field([&](const std::string& name, const Field& questions) {
      questions.require(!name.empty() && !is_number(name), "must have a name in words, got ", excerpt(name));
      protocol.control_groups.push_back({name, parse_texts(questions)});
    });
}

nlohmann::json parse_text(const std::string& text, const std::string& where) {
  return parse_json<ConfigError>(text, where.empty() ? "protocol" : "protocol " + where);
}

Protocol from_json(const nlohmann::json& json) {
  check<ConfigError>(json.is_object(), "protocol: the file must hold a JSON object, got ", describe(json));
  Protocol out;
  out.name = Field(json, "protocol: ").at("name").some_text();
  const Field field(json, concat("protocol ", excerpt(out.name), ": "));
  field.object({"name",
                "source",
                "turns",
                "injected",
                "inject",
                "relative_strength",
                "read",
                "readouts",
                "steer_generation",
                "yes_token",
                "no_token",
                "yes_variants",
                "no_variants",
                "report_tokens",
                "paraphrases",
                "asks_own_question",
                "sentences",
                "answers",
                "sampling",
                "controls"});
  if (field.has("source")) out.source = field.at("source").text();
  out.conversation.turns = parse_turns(field.at("turns"));
  if (field.has("answers")) out.answers = parse_texts(field.at("answers"));
  for (const auto& answer : out.answers)
    field.at("answers").require(answer.find_first_not_of(' ') != std::string::npos,
                                "must not be spaces alone");
  if (field.has("sentences")) {
    field.require(!field.has("injected"), "sentences and injected exclude each other");
    parse_sentences(field.at("sentences"), out.answers, out.conversation);
  } else {
    parse_injected(field.at("injected"), out.conversation);
  }
  if (field.has("answers")) check_answers(field.at("answers"), out);
  if (field.has("inject")) parse_inject(field.at("inject"), out);
  if (field.has("relative_strength")) out.relative_strength = field.at("relative_strength").number();
  if (field.has("readouts")) out.readouts = parse_readouts(field.at("readouts"));
  if (field.has("read")) {
    const auto read = field.at("read");
    const auto found = kReads.find(read.text());
    read.require(found != kReads.end(), "must be yes_no, content or sample, got ", excerpt(read.text()));
    out.read = found->second;
  }
  if (field.has("steer_generation")) {
    const auto steers = field.at("steer_generation");
    out.steer_generation = steers.boolean();
    const bool reaches_spans_only = out.inject == Inject::noise || out.inject == Inject::dropout ||
                                    out.inject == Inject::scale || out.inject == Inject::swap;
    steers.require(!out.steer_generation || !reaches_spans_only, "must be false, as injecting by ",
                   to_string(out.inject), " reaches the spans alone");
  }
  if (field.has("yes_token")) out.yes_token = field.at("yes_token").some_text();
  if (field.has("no_token")) out.no_token = field.at("no_token").some_text();
  field.require(out.yes_token != out.no_token, "yes_token and no_token must differ, got ",
                excerpt(out.yes_token), " twice");
  if (field.has("yes_variants")) out.yes_variants = parse_texts(field.at("yes_variants"));
  if (field.has("no_variants")) out.no_variants = parse_texts(field.at("no_variants"));
  if (field.has("paraphrases")) parse_paraphrases(field.at("paraphrases"), out);
  if (field.has("asks_own_question")) {
    const auto asks = field.at("asks_own_question");
    out.asks_own_question = asks.boolean();
    asks.require(out.asks_own_question || !out.paraphrases.empty(),
                 "may be false only where there are paraphrases to ask");
  }
  if (field.has("report_tokens")) {
    field.at("report_tokens").for_each_field([&](const std::string& concept_name, const Field& word) {
      out.report_tokens.emplace(concept_name, word.some_text());
    });
  }
  if (field.has("sampling")) out.sampling = parse_sampling(field.at("sampling"));
  if (field.has("controls")) parse_controls(field.at("controls"), out);
  return out;
}

Json turns_json(const std::vector<text::Message>& turns) {
  Json out = Json::array();
  for (const auto& turn : turns) out.push_back({{"role", turn.role}, {"content", turn.content}});
  return out;
}

Json conversation_json(const Conversation& conversation) {
  Json injected = conversation.injected;
  for (const auto& [turn, text] : conversation.passages) injected.push_back({{"turn", turn}, {"text", text}});
  return {{"turns", turns_json(conversation.turns)}, {"injected", injected}};
}

template <typename T>
std::string name_of(const std::map<std::string, T>& names, T wanted) {
  for (const auto& [name, value] : names)
    if (value == wanted) return name;
  throw std::invalid_argument("to_string: not a value of this kind");
}

/// The file of a protocol: a path with a folder in it or ending in .json as it is, otherwise the protocol of this name
/// that comes with the library, or where there is none of this name the path.
std::filesystem::path protocol_file(const std::filesystem::path& path_or_name) {
  if (path_or_name.has_parent_path() || path_or_name.extension() == ".json") return path_or_name;
  auto file = io::share_folder() / "protocols" / path_or_name;
  file += ".json";
  return std::filesystem::exists(file) ? file : path_or_name;
}

/// The file with what it does not give taken from the file beside it that it is based on.
nlohmann::json load_json(const std::filesystem::path& path, int depth = 0) {
  auto json = parse_text(io::read_text(path), path.string());
  if (!json.is_object() || !json.contains("based_on")) return json;
  check<ConfigError>(json["based_on"].is_string() && depth < 8, "protocol ", path.string(),
                     ": based_on must name a file beside this one, and not lead back to it");
  auto out = load_json(path.parent_path() / json["based_on"].get<std::string>(), depth + 1);
  json.erase("based_on");
  check<ConfigError>(out.is_object(), "protocol ", path.string(),
                     ": based_on must name a file with an object");
  out.update(json);
  return out;
}

}  // namespace

std::string to_string(Read read) {
  return name_of(kReads, read);
}

std::string to_string(Inject inject) {
  return name_of(kInjects, inject);
}

Protocol Protocol::parse(const std::string& json) {
  const auto parsed = parse_text(json, "");
  const bool is_name = parsed.is_object() && parsed.contains("controls") && parsed["controls"].is_string();
  check<ConfigError>(!is_name,
                     "protocol: controls must be an object here; only a file can name a file beside it");
  return from_json(parsed);
}

Protocol Protocol::load(const std::filesystem::path& path_or_name) {
  const auto path = protocol_file(path_or_name);
  auto json = load_json(path);
  if (json.is_object() && json.contains("controls") && json["controls"].is_string()) {
    const auto beside = path.parent_path() / json["controls"].get<std::string>();
    json["controls"] = parse_text(io::read_text(beside), beside.string());
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
  // What stands at its default is left out, so that a protocol keeps its hash when the format grows.
  if (inject != Inject::vector) {
    json["inject"] = {{"by", to_string(inject)}};
    if (inject == Inject::model) json["inject"]["model"] = prefill_model;
    if (!other_turns.empty()) json["inject"]["turns"] = turns_json(other_turns);
    if (!swap_text.empty()) json["inject"]["text"] = swap_text;
    if (!concept_texts.empty()) json["inject"]["texts"] = concept_texts;
    if (inject == Inject::dropout) json["inject"]["rate"] = dropout_rate;
  }
  if (relative_strength != 1.0) json["relative_strength"] = relative_strength;
  if (!readouts.empty()) {
    auto& asked = json["readouts"] = Json::object();
    for (const auto& [name, off] : first_readouts())
      asked[name] = json_of(readouts.count(name) ? readouts.at(name) : off);
    for (const auto& [name, parameter] : readouts)
      if (!is_first_readout(name)) asked[name] = json_of(parameter);
  }
  if (!yes_variants.empty()) json["yes_variants"] = yes_variants;
  if (!no_variants.empty()) json["no_variants"] = no_variants;
  for (const auto& [question, prefix, label] : paraphrases) {
    Json one{{"question", question}};
    if (!prefix.empty()) one["prefix"] = prefix;
    if (!label.empty()) one["name"] = label;
    json["paraphrases"].push_back(one.size() == 1 ? Json(question) : one);
  }
  if (!asks_own_question) json["asks_own_question"] = false;
  if (!answers.empty()) json["answers"] = answers;
  if (!control_questions.empty() || !control_groups.empty()) {
    auto& controls = json["controls"] = control ? conversation_json(*control) : Json::object();
    if (!control_questions.empty()) controls["questions"] = control_questions;
    for (const auto& [group, questions] : control_groups) controls["groups"][group] = questions;
    if (control && control_name != Protocol{}.control_name) controls["name"] = control_name;
    if (control_wording != (control ? wording_of(*control) : kQuestion))
      controls["question"] = control_wording;
    if (controls_in) controls["asked_in"] = *controls_in;
  }
  return json.dump(1);
}

std::string Protocol::hash() const {
  return sha256_hex(to_json());
}

}  // namespace introspect::experiments
