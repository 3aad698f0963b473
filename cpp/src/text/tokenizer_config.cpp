#include "text/tokenizer_config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "io/json_file.h"

namespace introspect::text {
namespace {

using nlohmann::json;

// Ends of a turn or a text in the chat formats of chat.h, and in base models of the same families.
constexpr std::array<std::string_view, 9> kStops = {"<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",
                                                    "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>",
                                                    "<|end_of_turn|>", "<|end|>",       "</s>"};

/// "<s>", {"content": "<s>", ...} or null.
std::optional<std::string> token_of(const json& config, const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  return (found->is_object() ? found->at("content") : *found).get<std::string>();
}

std::optional<bool> flag_of(const json& config, const char* key) {
  const auto found = config.find(key);
  return found != config.end() && found->is_boolean() ? std::optional(found->get<bool>()) : std::nullopt;
}

/// A template, or a list of named ones of which "default" is meant.
std::optional<std::string> template_of(const json& config) {
  const auto found = config.find("chat_template");
  if (found == config.end() || found->is_null()) return std::nullopt;
  if (found->is_string()) return found->get<std::string>();
  for (const auto& named : *found)
    if (named.at("name") == "default") return named.at("template").get<std::string>();
  return std::nullopt;
}

}  // namespace

TokenizerConfig TokenizerConfig::read(const std::filesystem::path& folder) {
  TokenizerConfig config;
  const auto file = folder / "tokenizer_config.json", jinja = folder / "chat_template.jinja";
  if (std::filesystem::is_regular_file(file)) {
    try {
      const json parsed = io::read_json_object(file);
      config.bos_token = token_of(parsed, "bos_token");
      config.eos_token = token_of(parsed, "eos_token");
      config.pad_token = token_of(parsed, "pad_token");
      config.add_bos_token = flag_of(parsed, "add_bos_token");
      config.add_eos_token = flag_of(parsed, "add_eos_token");
      config.chat_template = template_of(parsed);
      config.present = true;
    } catch (const json::exception& error) {
      throw IoError(concat(file.string(), " is broken: ", plain_reason(error)));
    }
  }
  if (std::filesystem::is_regular_file(jinja)) config.chat_template = io::read_text(jinja);
  return config;
}

void TokenizerConfig::apply(Vocabulary& vocabulary) const {
  const auto set = [&](std::optional<int64_t>& id, const std::optional<std::string>& token) {
    if (token) id = vocabulary.find(*token);
  };
  set(vocabulary.bos, bos_token);
  set(vocabulary.eos, eos_token);
  set(vocabulary.pad, pad_token);
  if (chat_template) vocabulary.chat_template = chat_template;
  // add_bos_token and add_eos_token are what transformers builds the surroundings from where they are given.
  if (add_bos_token && vocabulary.bos) {
    std::erase(vocabulary.prefix, *vocabulary.bos);
    if (*add_bos_token) vocabulary.prefix.insert(vocabulary.prefix.begin(), *vocabulary.bos);
  }
  if (add_eos_token && vocabulary.eos) {
    std::erase(vocabulary.suffix, *vocabulary.eos);
    if (*add_eos_token) vocabulary.suffix.push_back(*vocabulary.eos);
  }
  vocabulary.stops = known_stops(vocabulary);
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
