#include "text/tokenizer_json.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/json.h"
#include "introspect/core/check.h"
#include "text/bpe_engine.h"

namespace introspect::text {
namespace {

using nlohmann::json;

[[noreturn]] void unsupported(const char* stage, const std::string& what) {
  throw ConfigError(concat("tokenizer.json: ", stage, " \"", what, "\" is not supported"));
}

std::string type_of(const json& stage) {
  return stage.at("type").get<std::string>();
}

/// The value, or the default where the key is missing or null.
template <typename T>
T value_or(const json& object, const char* key, T otherwise) {
  const auto found = object.find(key);
  return found == object.end() || found->is_null() ? otherwise : found->get<T>();
}

/// A stage, or the stages of a Sequence one after another. `list` is the key of the list in a Sequence.
template <typename Visit>
void for_each_stage(const json& stage, const char* list, const Visit& visit) {
  if (stage.is_null()) return;
  if (type_of(stage) != "Sequence") return visit(stage);
  for (const auto& inner : stage.at(list)) for_each_stage(inner, list, visit);
}

std::string literal_pattern(const json& stage, const char* kind) {
  const json& pattern = stage.at("pattern");
  if (!pattern.contains("String")) unsupported(kind, "Replace by a regular expression");
  const auto text = pattern.at("String").get<std::string>();
  check<ConfigError>(!text.empty(), "tokenizer.json: ", kind,
                     " Replace must have a pattern that is not empty");
  return text;
}

Normalizer read_normalizer(const json& whole) {
  Normalizer steps;
  for_each_stage(whole, "normalizers", [&](const json& stage) {
    const std::string type = type_of(stage);
    if (type == "NFC")
      steps.emplace_back(Nfc{});
    else if (type == "Prepend")
      steps.emplace_back(Prepend{stage.at("prepend").get<std::string>()});
    else if (type == "Replace")
      steps.emplace_back(
          Replace{literal_pattern(stage, "normalizer"), stage.at("content").get<std::string>()});
    else
      unsupported("normalizer", type);
  });
  return steps;
}

Split read_split(const json& stage, const std::string& file) {
  static const std::pair<const char*, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::removed},
      {"Isolated", SplitBehavior::isolated},
      {"MergedWithPrevious", SplitBehavior::merged_with_previous},
      {"MergedWithNext", SplitBehavior::merged_with_next},
      {"Contiguous", SplitBehavior::contiguous}};
  const json& pattern = stage.at("pattern");
  const std::string behavior = stage.at("behavior").get<std::string>();
  for (const auto& [name, value] : kBehaviors) {
    if (behavior != name) continue;
    return {pattern.contains("Regex") ? Pattern(pattern.at("Regex").get<std::string>(), file)
                                      : Pattern::literal(pattern.at("String").get<std::string>()),
            value, value_or(stage, "invert", false)};
  }
  unsupported("split behavior", behavior);
}

Metaspace read_metaspace(const json& stage) {
  Metaspace step;
  step.replacement = value_or(stage, "replacement", step.replacement);
  check<ConfigError>(!step.replacement.empty(),
                     "tokenizer.json: Metaspace must have a replacement that is not empty");
  const bool older_flag = value_or(stage, "add_prefix_space", true);
  const std::string scheme = value_or(stage, "prepend_scheme", std::string(older_flag ? "always" : "never"));
  if (scheme == "always")
    step.prepend = Metaspace::Prepend::always;
  else if (scheme == "first")
    step.prepend = Metaspace::Prepend::first;
  else if (scheme == "never")
    step.prepend = Metaspace::Prepend::never;
  else
    unsupported("prepend_scheme", scheme);
  step.split = value_or(stage, "split", true);
  return step;
}

/// `byte_level` becomes whether a ByteLevel stage spells the words as bytes; it must be the last one. `prefix_space`
/// holds instead of what that stage says.
PreTokenizer read_pre_tokenizer(const json& whole, const std::string& file, std::optional<bool> prefix_space,
                                bool& byte_level) {
  PreTokenizer steps;
  byte_level = false;
  for_each_stage(whole, "pretokenizers", [&](const json& stage) {
    const std::string type = type_of(stage);
    if (byte_level) unsupported("pre-tokenizer after ByteLevel", type);
    if (type == "ByteLevel") {
      byte_level = true;
      if (prefix_space.value_or(value_or(stage, "add_prefix_space", true))) steps.emplace_back(PrefixSpace{});
      if (value_or(stage, "use_regex", true)) steps.emplace_back(Split{Pattern(kGpt2Pattern)});
    } else if (type == "Split") {
      steps.emplace_back(read_split(stage, file));
    } else if (type == "Digits") {
      const bool individual = value_or(stage, "individual_digits", false);
      steps.emplace_back(Split{Pattern(individual ? "\\p{N}" : "\\p{N}+")});
    } else if (type == "Metaspace") {
      steps.emplace_back(read_metaspace(stage));
    } else {
      unsupported("pre-tokenizer", type);
    }
  });
  return steps;
}

struct Decoder {
  BpeSpelling spelling;
  JoinRule join;
};

Decoder read_decoder(const json& whole) {
  Decoder decoder;
  if (whole.is_null()) decoder.join.separator = " ";
  bool fused = false;
  for_each_stage(whole, "decoders", [&](const json& stage) {
    const std::string type = type_of(stage);
    if (type == "ByteLevel") {
      decoder.spelling.byte_level = true;
    } else if (type == "Replace" && !fused && !decoder.spelling.byte_fallback) {
      decoder.spelling.replace.push_back(
          {literal_pattern(stage, "decoder"), stage.at("content").get<std::string>()});
    } else if (type == "ByteFallback" && !fused) {
      decoder.spelling.byte_fallback = true;
      decoder.join.invalid = JoinRule::Invalid::whole_run;
    } else if (type == "Fuse") {
      fused = true;
    } else if (type == "Strip" && fused && stage.at("content") == " " && value_or(stage, "stop", 0) == 0) {
      decoder.join.strip_left = value_or(stage, "start", 0);
    } else {
      unsupported("decoder", type + (fused ? " after Fuse" : ""));
    }
  });
  const auto& spelling = decoder.spelling;
  if (spelling.byte_level && (spelling.byte_fallback || !spelling.replace.empty() || fused))
    unsupported("decoder", "ByteLevel beside others");
  return decoder;
}

/// With the ids the file gives.
std::vector<AddedToken> read_added_tokens(const json& list) {
  std::vector<AddedToken> added;
  if (list.is_null()) return added;
  for (const auto& entry : list) {
    AddedToken token{.content = entry.at("content").get<std::string>(),
                     .id = entry.at("id").get<int64_t>(),
                     .special = value_or(entry, "special", false),
                     .normalized = value_or(entry, "normalized", true),
                     .single_word = value_or(entry, "single_word", false),
                     .lstrip = value_or(entry, "lstrip", false),
                     .rstrip = value_or(entry, "rstrip", false)};
    if (!token.content.empty()) added.push_back(std::move(token));
  }
  return added;
}

/// The stages that LlamaTokenizer and CodeLlamaTokenizer build, whatever those of the file are.
void build_llama_stages(const TokenizerConfig& config, BpeStages& stages, JoinRule& join) {
  const bool code = config.tokenizer_class == TokenizerClass::code_llama;
  const bool prefix = config.add_prefix_space.value_or(true);
  using Prepend = Metaspace::Prepend;
  const auto scheme = !prefix                                  ? Prepend::never
                      : !code && config.legacy.value_or(false) ? Prepend::always
                                                               : Prepend::first;
  stages.normalizer.clear();
  stages.pre_tokenizer.assign(1, Metaspace{.prepend = scheme, .split = false});
  stages.spelling = {.replace = {{"\xE2\x96\x81", " "}}, .byte_fallback = true};
  join = {.invalid = JoinRule::Invalid::whole_run, .strip_left = prefix || code ? 1 : 0};
}

/// The token that tokenizer.json fills up with: transformers' pad_token where no file names another.
std::optional<std::string> padding_token(const json& file) {
  const auto padding = value_or(file, "padding", json());
  return padding.is_object() ? std::optional(padding.at("pad_token").get<std::string>()) : std::nullopt;
}

/// Appends what a post-processor puts before and after a text.
void read_post_processor(const json& whole, Vocabulary& vocabulary) {
  for_each_stage(whole, "processors", [&](const json& stage) {
    const std::string type = type_of(stage);
    if (type == "ByteLevel") return;  // moves offsets only
    if (type != "TemplateProcessing") unsupported("post-processor", type);
    bool after = false;
    for (const auto& part : stage.at("single")) {
      if (part.contains("Sequence")) {
        check<ConfigError>(!after, "tokenizer.json: a template must hold the text once");
        after = true;
        continue;
      }
      const json& special =
          stage.at("special_tokens").at(part.at("SpecialToken").at("id").get<std::string>());
      for (const auto& id : special.at("ids")) {
        check<IoError>(vocabulary.has(id.get<int64_t>()), "tokenizer.json: the template's id ",
                       id.get<int64_t>(), " must be a token");
        (after ? vocabulary.suffix : vocabulary.prefix).push_back(id.get<int64_t>());
      }
    }
    check<ConfigError>(after, "tokenizer.json: a template must hold the text once");
  });
}

/// "a b" (a space stands in no token then) or ["a", "b"].
std::vector<Bpe::Merge> read_merges(const json& list) {
  std::vector<Bpe::Merge> merges;
  merges.reserve(list.size());
  for (const auto& entry : list) {
    if (entry.is_string()) {
      const std::string_view pair = entry.get_ref<const std::string&>();
      const size_t space = pair.find(' ');
      check<IoError>(space != std::string_view::npos && pair.find(' ', space + 1) == std::string_view::npos,
                     "tokenizer.json: a merge must be two tokens with a space between, got \"", pair, "\"");
      merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
    } else {
      merges.emplace_back(entry.at(0).get_ref<const std::string&>(),
                          entry.at(1).get_ref<const std::string&>());
    }
  }
  return merges;
}

std::optional<bool> prefix_space_of(const TokenizerConfig& config) {
  switch (config.tokenizer_class) {
    case TokenizerClass::gpt2:
    case TokenizerClass::gpt_neox:
    case TokenizerClass::qwen2:
      return config.add_prefix_space.value_or(false);
    default:
      return std::nullopt;
  }
}

std::shared_ptr<const TokenizerEngine> build(const json& file, TokenizerConfig config,
                                             const std::string& path) {
  check<IoError>(file.is_object(), "tokenizer.json must hold a JSON object");
  const json& model = file.at("model");
  const std::string model_type = value_or(model, "type", std::string("BPE"));
  if (model_type != "BPE") unsupported("model", model_type);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!value_or(model, key, std::string()).empty()) unsupported("model", key);
  if (value_or(model, "dropout", 0.0) != 0.0) unsupported("model", "dropout");
  if (const auto padding = padding_token(file)) config.set_default("pad_token", *padding);

  const json& vocab = model.at("vocab");
  check<IoError>(vocab.is_object(), "tokenizer.json: the vocabulary must be an object of ids by token");
  Vocabulary vocabulary;
  for (const auto& [token, id] : vocab.items()) vocabulary.add(token, id.get<int64_t>());
  AddedVocabulary added(static_cast<int64_t>(vocab.size()), [&](const std::string& token) {
    const auto found = vocab.find(token);
    return found == vocab.end() ? std::nullopt : std::optional(found->get<int64_t>());
  });
  config.add_tokens(added, read_added_tokens(value_or(file, "added_tokens", json())));
  auto stages = BpeStages{.added = vocabulary.take(added, config.split_special_tokens)};
  vocabulary.index();
  TokenIds own(vocabulary.tokens);  // without the added tokens: those are never found inside a word
  for (const auto& [token, id] : vocab.items()) own.add(id.get<size_t>());

  read_post_processor(value_or(file, "post_processor", json()), vocabulary);
  if (vocabulary.prefix.size() == 1)
    vocabulary.bos = vocabulary.prefix.front();  // unless the config names another
  config.apply(vocabulary);
  if (config.tokenizer_class == TokenizerClass::code_llama && vocabulary.bos) {
    vocabulary.prefix = {*vocabulary.bos};
    vocabulary.suffix.clear();
  }

  BpeOptions options;
  stages.pre_tokenizer = read_pre_tokenizer(value_or(file, "pre_tokenizer", json()), path,
                                            prefix_space_of(config), options.byte_level);
  stages.normalizer = read_normalizer(value_or(file, "normalizer", json()));
  options.byte_fallback = value_or(model, "byte_fallback", false);
  options.fuse_unknown = value_or(model, "fuse_unk", false);
  options.ignore_merges = value_or(model, "ignore_merges", false);
  auto unknown = value_or(model, "unk_token", std::string());
  auto decoder = read_decoder(value_or(file, "decoder", json()));
  stages.spelling = std::move(decoder.spelling);
  if (config.tokenizer_class == TokenizerClass::llama ||
      config.tokenizer_class == TokenizerClass::code_llama) {
    build_llama_stages(config, stages, decoder.join);
    options = {.byte_fallback = true, .fuse_unknown = true};
    unknown.clear();
    if (config.tokenizer_class == TokenizerClass::code_llama)
      if (const auto found = vocabulary.special_tokens.find("unk_token");
          found != vocabulary.special_tokens.end())
        unknown = found->second;
  }
  if (!unknown.empty()) {
    const auto found = own.find(unknown);
    check<IoError>(found.has_value(), "tokenizer.json: unk_token \"", unknown,
                   "\" must be in the vocabulary");
    options.unknown_id = found;
  }
  vocabulary.kind = options.byte_level ? "byte-level BPE" : "SentencePiece BPE";
  stages.bpe = Bpe(own, read_merges(model.at("merges")), options);
  return std::make_shared<BpeEngine>(std::move(vocabulary), std::move(decoder.join), std::move(stages));
}

}  // namespace

std::shared_ptr<const TokenizerEngine> read_tokenizer_json(const std::string& text,
                                                           const TokenizerConfig& config,
                                                           const std::filesystem::path& file) {
  constexpr JsonRules kRules{.max_bytes = size_t{512} << 20,
                             .may_repeat = [](size_t, std::string_view) { return true; }};
  const auto parsed = parse_json<IoError>(text, "tokenizer.json", kRules);
  try {
    return build(parsed, config, file.string());
  } catch (const json::exception& error) {
    throw IoError(concat("tokenizer.json is broken: ", plain_reason(error)));
  }
}

}  // namespace introspect::text
