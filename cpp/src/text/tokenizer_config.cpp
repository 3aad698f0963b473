#include "text/tokenizer_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/text/tokenizer.h"
#include "io/json_file.h"

namespace introspect::text {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// In the order in which transformers adds them.
constexpr std::array<const char*, 7> kNames = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

// Ends of a turn or a text in the chat formats of chat.h, and in base models of the same families.
constexpr std::array<std::string_view, 9> kStops = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
                                                    "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>",
                                                    "<|end_of_turn|>", "<|end|>",       "</s>"};

[[noreturn]] void broken(const fs::path& file, const std::string& key, const char* required,
                         const json& got) {
  throw IoError(concat(file.string(), ": '", key, "' must be ", required, ", got ", got.type_name()));
}

const json* value_at(const json& object, const std::string& key) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

std::optional<std::string> string_at(const json& object, const std::string& key, const fs::path& file) {
  const json* value = value_at(object, key);
  if (!value) return std::nullopt;
  if (!value->is_string()) broken(file, key, "a string", *value);
  return value->get<std::string>();
}

/// null reads as false.
std::optional<bool> flag_at(const json& object, const std::string& key, const fs::path& file) {
  const auto found = object.find(key);
  if (found == object.end()) return std::nullopt;
  if (found->is_null()) return false;
  if (!found->is_boolean()) broken(file, key, "true or false", *found);
  return found->get<bool>();
}

/// What an object that describes a token says where it leaves "special" out.
enum class Special { no, yes, always };  // always: whatever it says

/// "<s>", which is special, or {"content": "<s>", "lstrip": ..., ...}.
AddedToken token_of(const json& value, Special special, const std::string& key, const fs::path& file) {
  AddedToken token{.special = true};
  if (value.is_string()) {
    token.content = value.get<std::string>();
    token.is_text = true;
    return token;
  }
  if (!value.is_object()) broken(file, key, "a token or an object that describes one", value);
  const auto content = string_at(value, "content", file);
  check<IoError>(content.has_value(), file.string(), ": '", key, "' must have a content");
  token.content = *content;
  if (special != Special::always)
    token.special = flag_at(value, "special", file).value_or(special == Special::yes);
  token.normalized = flag_at(value, "normalized", file).value_or(!token.special);
  token.single_word = flag_at(value, "single_word", file).value_or(false);
  token.lstrip = flag_at(value, "lstrip", file).value_or(false);
  token.rstrip = flag_at(value, "rstrip", file).value_or(false);
  return token;
}

std::vector<AddedToken> tokens_of(const json& list, Special special, const std::string& key,
                                  const fs::path& file) {
  if (!list.is_array()) broken(file, key, "a list of tokens", list);
  std::vector<AddedToken> tokens;
  for (const auto& entry : list) tokens.push_back(token_of(entry, special, key, file));
  return tokens;
}

/// The keys of a JSON object in the order of the file, in which tokens are numbered. `inside`: of the object at this key.
std::vector<std::string> keys_in_order(const std::string& text, const json& object,
                                       const char* inside = nullptr) {
  auto ordered = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (inside && ordered.is_object()) ordered = nlohmann::ordered_json(ordered[inside]);
  std::vector<std::string> keys;
  for (const auto& [key, value] : ordered.items())
    if (object.contains(key)) keys.push_back(key);
  if (keys.size() != object.size()) {  // what one parser takes and the other does not
    keys.clear();
    for (const auto& [key, value] : object.items()) keys.push_back(key);
  }
  return keys;
}

/// Whether a key names a special token of the model's own, like "image_token".
bool is_own_name(const std::string& key) {
  return key.ends_with("_token") && std::ranges::find(kNames, key) == kNames.end();
}

/// Where several templates have names and none is "default", a template that says so when it is rendered.
std::optional<std::string> template_of(const std::map<std::string, std::string>& named) {
  if (named.empty()) return std::nullopt;
  if (const auto found = named.find("default"); found != named.end()) return found->second;
  std::string names;
  for (const auto& [name, source] : named) names += (names.empty() ? "" : ", ") + name;
  return "{{ raise_exception(" +
         json(concat("chat_template has several templates and none is named default: ", names,
                     "; give the text of one"))
             .dump() +
         ") }}";
}

/// A template, a list of {"name", "template"}, or an object of templates by name.
std::optional<std::string> template_in(const json& config, const fs::path& file) {
  const json* value = value_at(config, "chat_template");
  if (!value) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  std::map<std::string, std::string> named;
  if (value->is_array()) {
    for (const auto& entry : *value) {
      if (!entry.is_object()) broken(file, "chat_template", "a list of templates with names", entry);
      const auto name = string_at(entry, "name", file), source = string_at(entry, "template", file);
      check<IoError>(name && source, file.string(), ": each 'chat_template' must have a name and a template");
      named[*name] = *source;
    }
  } else if (value->is_object()) {
    for (const auto& [name, source] : value->items()) {
      if (!source.is_string()) broken(file, "chat_template", "an object of templates", source);
      named[name] = source.get<std::string>();
    }
  } else {
    broken(file, "chat_template", "a template, a list or an object", *value);
  }
  return template_of(named);
}

/// chat_template.jinja and additional_chat_templates/NAME.jinja, which hide what tokenizer_config.json has.
std::optional<std::string> template_beside(const fs::path& folder) {
  std::map<std::string, std::string> named;
  if (const auto file = folder / "chat_template.jinja"; fs::is_regular_file(file))
    named["default"] = io::read_text(file);
  if (const auto more = folder / "additional_chat_templates"; fs::is_directory(more))
    for (const auto& entry : fs::directory_iterator(more))
      if (entry.path().extension() == ".jinja")
        named[entry.path().stem().string()] = io::read_text(entry.path());
  return template_of(named);
}

json json_at(const fs::path& file) {
  return fs::is_regular_file(file) ? io::read_json_object(file) : json::object();
}

/// An id, a list of ids or null.
std::vector<int64_t> ids_at(const json& config, const fs::path& file) {
  static const char* const kKey = "eos_token_id";
  const json* value = value_at(config, kKey);
  if (!value) return {};
  std::vector<int64_t> ids;
  for (const auto& id : value->is_array() ? *value : json::array({*value})) {
    if (!id.is_number_integer()) broken(file, kKey, "an id or a list of ids", id);
    if (id.is_number_unsigned() || id.get<int64_t>() >= 0) ids.push_back(id.get<int64_t>());
  }
  return ids;
}

}  // namespace

std::vector<int64_t> eos_token_ids_of(const fs::path& folder) {
  const auto generation = folder / "generation_config.json", config = folder / "config.json";
  if (auto ids = ids_at(json_at(generation), generation); !ids.empty()) return ids;
  const json parsed = json_at(config);
  if (auto ids = ids_at(parsed, config); !ids.empty()) return ids;
  const json* text = value_at(parsed, "text_config");
  return text && text->is_object() ? ids_at(*text, config) : std::vector<int64_t>();
}

TokenizerConfig TokenizerConfig::read(const fs::path& folder) {
  TokenizerConfig config;
  ClassHints hints;
  const auto model_file = folder / "config.json";
  const json model = json_at(model_file);
  if (const json* type = value_at(model, "model_type"); type && type->is_string())
    hints.model_type = type->get<std::string>();
  hints.in_config = string_at(model, "tokenizer_class", model_file);
  const auto own = folder / "tokenizer_config.json", map = folder / "special_tokens_map.json",
             added = folder / "added_tokens.json";
  if (fs::is_regular_file(own)) config.read_tokenizer_config(own, hints);
  if (!config.lists_added) {
    if (fs::is_regular_file(map)) config.read_special_tokens_map(map);
    if (fs::is_regular_file(added)) config.read_added_tokens(added);
  }
  const auto name = hints.in_tokenizer_config ? hints.in_tokenizer_config : hints.in_config;
  if (const auto file = folder / "tokenizer.json";
      name && name->starts_with("LlamaTokenizer") && fs::is_regular_file(file))
    hints.is_byte_level = io::read_text(file).find("\"ByteLevel\"") != std::string::npos;
  config.tokenizer_class = choose_class(hints);
  config.set_class_defaults();
  if (auto source = template_beside(folder)) config.chat_template = std::move(source);
  config.eos_token_ids = eos_token_ids_of(folder);
  return config;
}

void TokenizerConfig::read_tokenizer_config(const fs::path& file, ClassHints& hints) {
  const std::string text = io::read_text(file);
  const json parsed = io::parse_json_object(text, file);
  present = true;
  hints.in_tokenizer_config = string_at(parsed, "tokenizer_class", file);
  if (const json* map = value_at(parsed, "auto_map"))
    hints.has_own_code = !map->is_object() || value_at(*map, "AutoTokenizer");
  legacy = flag_at(parsed, "legacy", file);
  if (value_at(parsed, "add_prefix_space")) add_prefix_space = flag_at(parsed, "add_prefix_space", file);
  add_bos_token = flag_at(parsed, "add_bos_token", file);
  add_eos_token = flag_at(parsed, "add_eos_token", file);
  split_special_tokens = flag_at(parsed, "split_special_tokens", file).value_or(false);
  for (const char* key :
       {"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "fix_mistral_regex"})
    check<ConfigError>(!flag_at(parsed, key, file).value_or(false), file.string(), ": '", key,
                       "' is true, which this library does not do");
  for (const char* key : {"fast_tokenizer_files", "init_inputs"})
    if (const json* value = value_at(parsed, key))
      check<ConfigError>(value->empty(), file.string(), ": '", key, "' is not supported");
  chat_template = template_in(parsed, file);

  for (const auto& key : keys_in_order(text, parsed)) {
    const json& value = parsed.at(key);
    if (std::ranges::find(kNames, key) != kNames.end())
      named_[key] = value.is_null() ? std::nullopt : std::optional(token_of(value, Special::no, key, file));
    else if (is_own_name(key) && value.is_string())
      own_.emplace_back(key, token_of(value, Special::no, key, file));
    else if (is_own_name(key) && value.is_object() && value.contains("__type"))
      own_before_.emplace_back(key, token_of(value, Special::no, key, file));
  }
  const json* more = value_at(parsed, "extra_special_tokens");
  const auto older = parsed.find("additional_special_tokens");
  const auto older_tokens = [&] {
    return older->is_null() ? std::vector<AddedToken>()
                            : tokens_of(*older, Special::no, "additional_special_tokens", file);
  };
  if (more && more->is_object() && !more->empty()) {
    for (const auto& key : keys_in_order(text, *more, "extra_special_tokens"))
      own_.emplace_back(key, token_of(more->at(key), Special::no, key, file));
    if (older != parsed.end()) additional_ = older_tokens();
  } else if (more && !more->empty()) {
    extra = tokens_of(*more, Special::no, "extra_special_tokens", file);
  } else if (older != parsed.end()) {
    extra = older_tokens();
  } else if (parsed.contains("extra_special_tokens")) {
    extra.emplace();
  }
  // What save_pretrained writes of a model's own tokens; keys of the config that are such tokens take its place.
  if (const json* own = value_at(parsed, "model_specific_special_tokens"); own && own_.empty()) {
    if (!own->is_object()) broken(file, "model_specific_special_tokens", "an object of tokens by name", *own);
    for (const auto& key : keys_in_order(text, *own, "model_specific_special_tokens"))
      own_.emplace_back(key, token_of(own->at(key), Special::no, key, file));
  }
  if (const json* list = value_at(parsed, "added_tokens_decoder")) {
    if (!list->is_object()) broken(file, "added_tokens_decoder", "an object of tokens by id", *list);
    lists_added = true;
    for (const auto& [key, value] : list->items()) {
      int64_t id = -1;
      const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      check<IoError>(error == std::errc() && end == key.data() + key.size() && id >= 0, file.string(),
                     ": 'added_tokens_decoder' must have ids as its keys, got '", key, "'");
      if (!value.is_object()) broken(file, "added_tokens_decoder", "an object of tokens by id", value);
      added[id] = token_of(value, Special::no, "added_tokens_decoder", file);
    }
  }
}

void TokenizerConfig::read_special_tokens_map(const fs::path& file) {
  const std::string text = io::read_text(file);
  const json parsed = io::parse_json_object(text, file);
  present = true;
  for (const auto& key : keys_in_order(text, parsed)) {
    const json& value = parsed.at(key);
    const auto token = [&] { return token_of(value, Special::always, key, file); };
    if (std::ranges::find(kNames, key) != kNames.end()) {
      named_[key] = value.is_null() ? std::nullopt : std::optional(token());
    } else if (key == "additional_special_tokens") {
      additional_ = value.is_null() ? std::vector<AddedToken>() : tokens_of(value, Special::yes, key, file);
    } else if (key == "extra_special_tokens" && value.is_array()) {
      if (!extra) extra.emplace();
      for (auto& one : tokens_of(value, Special::always, key, file))
        if (std::ranges::find(*extra, one.content, &AddedToken::content) == extra->end())
          extra->push_back(std::move(one));
    } else if (key == "extra_special_tokens" && value.is_object()) {
      for (const auto& name : keys_in_order(text, value, "extra_special_tokens"))
        own_.emplace_back(name, token_of(value.at(name), Special::no, name, file));
    } else if (is_own_name(key) && (value.is_string() || value.is_object())) {
      own_before_.emplace_back(key, token());
    }
  }
}

void TokenizerConfig::read_added_tokens(const fs::path& file) {
  const json parsed = io::read_json_object(file);
  present = true;
  std::unordered_set<std::string> special;
  for (const auto& [name, token] : named_)
    if (token) special.insert(token->content);
  if (extra)
    for (const auto& token : *extra) special.insert(token.content);
  for (const auto& [content, id] : parsed.items()) {
    if (!id.is_number_integer()) broken(file, content, "an id", id);
    const bool is_special = special.contains(content);
    added[id.get<int64_t>()] = {.content = content, .special = is_special, .normalized = !is_special};
  }
}

void TokenizerConfig::set_default(const std::string& name, const std::string& content) {
  named_.try_emplace(name, AddedToken{.content = content, .special = true, .is_text = true});
}

/// The special tokens that a class of transformers names itself.
void TokenizerConfig::set_class_defaults() {
  const auto set_all = [&](std::initializer_list<const char*> names, const char* content) {
    for (const char* name : names) set_default(name, content);
  };
  switch (tokenizer_class) {
    case TokenizerClass::backend:
      break;
    case TokenizerClass::gpt2:
      set_all({"bos_token", "eos_token", "unk_token"}, "<|endoftext|>");
      named_.try_emplace("pad_token");
      break;
    case TokenizerClass::gpt_neox:
      set_all({"bos_token", "eos_token", "unk_token"}, "<|endoftext|>");
      set_default("pad_token", "<|padding|>");
      break;
    case TokenizerClass::qwen2:
      set_all({"eos_token", "unk_token", "pad_token"}, "<|endoftext|>");
      break;
    case TokenizerClass::code_llama:
      for (const auto& [name, content] :
           {std::pair("fill_token", "<FILL_ME>"), std::pair("eot_token", "▁<EOT>"),
            std::pair("suffix_token", "▁<SUF>"), std::pair("middle_token", "▁<MID>"),
            std::pair("prefix_token", "▁<PRE>")})
        own_before_.emplace(own_before_.begin(), name,
                            AddedToken{.content = content, .special = true, .is_text = true});
      [[fallthrough]];
    case TokenizerClass::llama:
      set_default("bos_token", "<s>"), set_default("eos_token", "</s>"), set_default("unk_token", "<unk>");
      break;
    case TokenizerClass::gemma:
      set_default("bos_token", "<bos>"), set_default("eos_token", "<eos>"), set_default("unk_token", "<unk>");
      set_default("pad_token", "<pad>"), set_default("mask_token", "<mask>");
      break;
  }
}

std::vector<std::pair<std::string, AddedToken>> TokenizerConfig::special_tokens() const {
  std::vector<std::pair<std::string, AddedToken>> tokens;
  for (const char* name : kNames)
    if (const auto found = named_.find(name); found != named_.end() && found->second)
      tokens.emplace_back(name, *found->second);
  for (const auto* list : {&own_before_, &own_})
    for (const auto& [name, token] : *list) {
      const auto known = std::ranges::find(tokens, name, [](const auto& entry) { return entry.first; });
      if (known == tokens.end())
        tokens.emplace_back(name, token);
      else
        known->second = token;
    }
  return tokens;
}

void TokenizerConfig::add_tokens(AddedVocabulary& vocabulary, const std::vector<AddedToken>& in_json,
                                 const std::vector<AddedToken>* additional) const {
  const auto require = [](const AddedToken& token, int64_t given, std::optional<int64_t> got,
                          const char* where) {
    check<ConfigError>(!got || *got == given, where, " gives \"", token.content, "\" the id ", given,
                       ", transformers gives it ", got.value_or(-1));
  };
  if (tokenizer_class == TokenizerClass::backend)
    for (const auto& token : in_json)
      require(token, token.id, vocabulary.add(token), "tokenizer.json: 'added_tokens'");

  auto declared = added;
  if (!lists_added)
    for (const auto& token : in_json) declared[token.id] = token;
  const auto special = special_tokens();
  std::unordered_set<std::string> named, known;
  for (const auto& [name, token] : special) named.insert(token.content);
  std::vector<AddedToken> to_add;
  for (auto [id, token] : declared) {
    token.special |= named.contains(token.content);
    if (vocabulary.has(token)) continue;
    known.insert(token.content);
    to_add.push_back(token);
  }
  // To transformers tokens of one content are different ones where their flags are, or where one is a string: all are
  // added, and the last one holds.
  const auto add_unless_there = [&](const AddedToken& token) {
    const auto is_same = [&](const AddedToken& other) {
      return other.content == token.content && other.is_text == token.is_text && same_flags(other, token);
    };
    if (!vocabulary.contains(token.content) && !known.contains(token.content) &&
        std::ranges::none_of(to_add, is_same))
      to_add.push_back(token);
  };
  for (const auto& [name, token] : special) add_unless_there(token);
  const auto more = extra        ? *extra
                    : additional ? *additional
                                 : additional_.value_or(std::vector<AddedToken>());
  for (const auto& token : more) add_unless_there(token);
  for (auto& token : to_add) {
    token.special |= named.contains(token.content);
    vocabulary.add(token);
  }
  if (tokenizer_class == TokenizerClass::qwen2) {  // adds its special tokens once more, without their flags
    for (const auto& [name, token] : special) vocabulary.add({.content = token.content, .special = true});
    for (const auto& token : more) vocabulary.add({.content = token.content, .special = true});
  }
  for (const auto& [id, token] : declared) {
    const char* where = lists_added          ? "tokenizer_config.json: 'added_tokens_decoder'"
                        : added.contains(id) ? "added_tokens.json"
                                             : "tokenizer.json: 'added_tokens'";
    require(token, id, vocabulary.id_of(token.content), where);
  }
}

void TokenizerConfig::apply(Vocabulary& vocabulary) const {
  for (const auto& [name, token] : special_tokens()) {
    vocabulary.special_tokens[name] = token.content;
    const auto id = vocabulary.find(token.content);
    if (name == "bos_token") vocabulary.bos = id;
    if (name == "eos_token") vocabulary.eos = id;
    if (name == "pad_token") vocabulary.pad = id;
  }
  if (chat_template) vocabulary.chat_template = chat_template;
  vocabulary.stops = known_stops(vocabulary);
  for (const int64_t id : eos_token_ids)
    if (std::ranges::find(vocabulary.stops, id) == vocabulary.stops.end()) vocabulary.stops.push_back(id);
}

std::vector<int64_t> known_stops(const Vocabulary& vocabulary) {
  std::vector<int64_t> stops;
  const auto add = [&](std::optional<int64_t> id) {
    if (id && std::ranges::find(stops, *id) == stops.end()) stops.push_back(*id);
  };
  add(vocabulary.eos);
  for (const auto token : kStops)
    if (const auto id = vocabulary.find(token); id && vocabulary.special.contains(*id)) add(id);
  return stops;
}

}  // namespace introspect::text
