#include "text/tokenizer_gguf.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/io/gguf.h"
#include "text/bpe_engine.h"
#include "text/sentencepiece_engine.h"
#include "text/tokenizer_config.h"

namespace introspect::text {
namespace {

// The values of tokenizer.ggml.token_type. Source: docs/gguf.md of ggml and llama.cpp's llama_token_type.
enum TokenType : int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

/// How llama.cpp cuts a text for a value of tokenizer.ggml.pre.
struct PreTokenizerChoice {
  std::vector<std::string_view> names;
  std::vector<const char*> patterns;  // each cuts further what the ones before have left
  bool nfc = false;                   // as in the model's own tokenizer.json; llama.cpp leaves it out
  bool ignore_merges = false;
  bool add_bos = false;  // where tokenizer.ggml.add_bos_token is missing
};

const PreTokenizerChoice& choice_of(const std::string& name) {
  static const std::vector<PreTokenizerChoice> kChoices = {
      {.names = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"}, .patterns = {kGpt2Pattern}},
      {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       .patterns = {"\\p{N}", kGpt2Pattern}},
      {.names = {"llama-bpe", "llama3", "llama-v3"},
       .patterns = {kLlama3Pattern},
       .ignore_merges = true,
       .add_bos = true},
      {.names = {"qwen2", "deepseek-r1-qwen"}, .patterns = {kQwen2Pattern}, .nfc = true},
      {.names = {"default"},
       .patterns = {R"([\p{P}\$\+<=>\^~\|]+)",
                    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S))", "\\p{N}+",
                    "[0-9][0-9][0-9]"}}};
  std::string known;
  for (const auto& choice : kChoices) {
    for (const auto one : choice.names) {
      if (one == name) return choice;
      known.append(known.empty() ? "" : ", ").append(one);
    }
  }
  throw ConfigError(
      concat("GGUF tokenizer: tokenizer.ggml.pre must be one of ", known, ", got \"", name, "\""));
}

std::vector<int64_t> token_types(const io::GgufFile& file, size_t n_tokens) {
  if (!file.has_key("tokenizer.ggml.token_type")) return std::vector<int64_t>(n_tokens, kNormal);
  auto types = file.get_ints("tokenizer.ggml.token_type");
  check<IoError>(types.size() == n_tokens, "GGUF tokenizer: tokenizer.ggml.token_type must have ", n_tokens,
                 " entries, got ", types.size());
  return types;
}

std::optional<int64_t> id_at(const io::GgufFile& file, const char* key, const Vocabulary& vocabulary) {
  if (!file.has_key(key)) return std::nullopt;
  const int64_t id = file.get_int(key);
  if (id == -1 || id == 0xFFFFFFFF) return std::nullopt;  // how "none" is written
  check<IoError>(vocabulary.has(id), "GGUF tokenizer: ", key, " must be in [0, ", vocabulary.tokens.size(),
                 "), got ", id);
  return id;
}

/// What both kinds of vocabulary have.
Vocabulary read_vocabulary(const io::GgufFile& file, std::vector<std::string> tokens,
                           const std::vector<int64_t>& types, bool add_bos) {
  Vocabulary vocabulary;
  check<IoError>(!tokens.empty() && static_cast<int64_t>(tokens.size()) <= Vocabulary::kMaxSize,
                 "GGUF tokenizer: tokenizer.ggml.tokens must have 1 to ", Vocabulary::kMaxSize,
                 " entries, got ", tokens.size());
  vocabulary.present.assign(tokens.size(), true);
  vocabulary.tokens = std::move(tokens);
  vocabulary.index();
  for (size_t id = 0; id < types.size(); ++id)
    if (types[id] == kControl || types[id] == kUnknown) vocabulary.special.insert(static_cast<int64_t>(id));
  vocabulary.bos = id_at(file, "tokenizer.ggml.bos_token_id", vocabulary);
  vocabulary.eos = id_at(file, "tokenizer.ggml.eos_token_id", vocabulary);
  vocabulary.pad = id_at(file, "tokenizer.ggml.padding_token_id", vocabulary);
  if (file.get_bool_or("tokenizer.ggml.add_bos_token", add_bos) && vocabulary.bos)
    vocabulary.prefix.push_back(*vocabulary.bos);
  if (file.get_bool_or("tokenizer.ggml.add_eos_token", false) && vocabulary.eos)
    vocabulary.suffix.push_back(*vocabulary.eos);
  if (file.has_key("tokenizer.chat_template"))
    vocabulary.chat_template = file.get_string("tokenizer.chat_template");
  vocabulary.stops = known_stops(vocabulary);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const auto id = id_at(file, key, vocabulary);
        id && std::ranges::find(vocabulary.stops, *id) == vocabulary.stops.end())
      vocabulary.stops.push_back(*id);
  return vocabulary;
}

std::shared_ptr<const TokenizerEngine> read_bpe(const io::GgufFile& file) {
  check<ConfigError>(
      file.has_key("tokenizer.ggml.pre"),
      "GGUF tokenizer: tokenizer.ggml.pre is missing; without it the way to cut texts is unknown");
  const auto& choice = choice_of(file.get_string("tokenizer.ggml.pre"));
  auto tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto types = token_types(file, tokens.size());
  auto vocabulary = read_vocabulary(file, std::move(tokens), types, choice.add_bos);
  vocabulary.kind = "byte-level BPE";

  std::vector<AddedToken> added;
  TokenIds own;
  own.reserve(types.size());
  for (size_t id = 0; id < types.size(); ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (types[id] == kControl || types[id] == kUserDefined || types[id] == kUnknown)
      added.push_back(
          {.content = token, .id = static_cast<int64_t>(id), .special = types[id] != kUserDefined});
    if (types[id] != kUnused) own.emplace(token, static_cast<int32_t>(id));
  }
  const auto pairs = file.get_strings("tokenizer.ggml.merges");
  std::vector<Bpe::Merge> merges;
  merges.reserve(pairs.size());
  for (const std::string_view pair : pairs) {
    const size_t space = pair.find(' ', 1);  // byte-level tokens hold no space
    check<IoError>(space != std::string_view::npos,
                   "GGUF tokenizer: a merge must be two tokens with a space between, got \"", pair, "\"");
    merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
  }
  BpeOptions options{.byte_level = true, .ignore_merges = choice.ignore_merges};
  Normalizer normalizer;
  if (choice.nfc) normalizer.emplace_back(Nfc{});
  PreTokenizer pre_tokenizer;
  if (file.get_bool_or("tokenizer.ggml.add_space_prefix", false)) pre_tokenizer.emplace_back(PrefixSpace{});
  for (const char* pattern : choice.patterns) pre_tokenizer.emplace_back(Split{Pattern(pattern)});
  Bpe bpe(own, merges, options);
  return std::make_shared<BpeEngine>(std::move(vocabulary), JoinRule{},
                                     BpeStages{.added = std::move(added),
                                               .normalizer = std::move(normalizer),
                                               .pre_tokenizer = std::move(pre_tokenizer),
                                               .bpe = std::move(bpe),
                                               .spelling = {.byte_level = true}});
}

std::shared_ptr<const TokenizerEngine> read_sentencepiece(const io::GgufFile& file) {
  auto tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto types = token_types(file, tokens.size());
  const auto scores = file.get_floats("tokenizer.ggml.scores");
  check<IoError>(scores.size() == tokens.size(), "GGUF tokenizer: tokenizer.ggml.scores must have ",
                 tokens.size(), " entries, got ", scores.size());
  SentencePieceModel model;
  model.add_dummy_prefix = file.get_bool_or("tokenizer.ggml.add_space_prefix", true);
  model.remove_extra_whitespaces = file.get_bool_or("tokenizer.ggml.remove_extra_whitespaces", false);
  model.unknown_id = file.get_int_or("tokenizer.ggml.unknown_token_id", 0);
  model.pieces.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    check<IoError>(std::isfinite(scores[id]), "GGUF tokenizer: the score of token ", id, " must be finite");
    check<IoError>(types[id] >= kNormal && types[id] <= kByte, "GGUF tokenizer: the type of token ", id,
                   " must be 1 to 6, got ", types[id]);
    model.pieces.push_back({tokens[id], static_cast<float>(scores[id]), static_cast<int>(types[id])});
  }
  auto vocabulary = read_vocabulary(file, std::move(tokens), types, true);
  return sentencepiece_engine(model, std::move(vocabulary));
}

}  // namespace

std::shared_ptr<const TokenizerEngine> read_tokenizer_gguf(const io::GgufFile& file) {
  const std::string model = file.get_string("tokenizer.ggml.model");
  if (model == "gpt2") return read_bpe(file);
  if (model == "llama") return read_sentencepiece(file);
  throw ConfigError(
      concat("GGUF tokenizer: tokenizer.ggml.model must be \"gpt2\" or \"llama\", got \"", model, "\""));
}

}  // namespace introspect::text
