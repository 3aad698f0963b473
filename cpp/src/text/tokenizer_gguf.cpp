#include "text/tokenizer_gguf.h"

#include <algorithm>
#include <cctype>
#include <span>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/io/gguf.h"
#include "text/bpe_engine.h"
#include "text/sentencepiece_engine.h"
#include "text/tokenizer_config.h"

namespace introspect::text {
namespace {

// Source of the defaults and corrections in this file: src/llama-vocab.cpp of ggml-org/llama.cpp, llama_vocab::impl::load.
// The values of tokenizer.ggml.token_type: docs/gguf.md of ggml and llama.cpp's llama_token_type.
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
      {.names = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "gigachat", "a.x-4.0",
                 "mellum", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"},
       .patterns = {kGpt2Pattern}},
      {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       .patterns = {"\\p{N}", kGpt2Pattern}},
      {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
       .patterns = {kLlama3Pattern},
       .ignore_merges = true,
       .add_bos = true},
      {.names = {"qwen2", "deepseek-r1-qwen", "megrez", "kormo"}, .patterns = {kQwen2Pattern}, .nfc = true},
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

constexpr std::string_view kEndsOfTurn[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>",
    // Of models that fill in the middle of code: padding, repository and file.
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>"};
constexpr std::string_view kOtherControls[] = {"<｜end▁of▁sentence｜>",
                                               "<|fim_prefix|>",
                                               "<fim-prefix>",
                                               "<fim_prefix>",
                                               "<｜fim▁begin｜>",
                                               "<PRE>",
                                               "▁<PRE>",
                                               "<|code_prefix|>",
                                               "<|fim_suffix|>",
                                               "<fim-suffix>",
                                               "<fim_suffix>",
                                               "<｜fim▁hole｜>",
                                               "<SUF>",
                                               "▁<SUF>",
                                               "<|code_suffix|>",
                                               "<|fim_middle|>",
                                               "<fim-middle>",
                                               "<fim_middle>",
                                               "<｜fim▁end｜>",
                                               "<MID>",
                                               "▁<MID>",
                                               "<|code_middle|>"};
// Keys of tokens that end a text beside eos, and of those that only are control tokens.
constexpr const char* kEndKeys[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id",
                                    "tokenizer.ggml.fim_pad_token_id", "tokenizer.ggml.fim_rep_token_id",
                                    "tokenizer.ggml.fim_sep_token_id"};

bool is_one_of(std::string_view token, std::span<const std::string_view> list) {
  return std::ranges::find(list, token) != list.end();
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

TokenTexts tokens_of(const io::GgufFile& file) {
  const auto stored = file.get_texts("tokenizer.ggml.tokens");
  check<IoError>(!stored.empty() && static_cast<int64_t>(stored.size()) <= Vocabulary::kMaxSize,
                 "GGUF tokenizer: tokenizer.ggml.tokens must have 1 to ", Vocabulary::kMaxSize,
                 " entries, got ", stored.size());
  std::string empty;
  return {stored.size(), [&](size_t id) -> std::string_view {
            if (!stored[id].empty()) return stored[id];
            return empty = concat("[EMPTY_", id, "]");
          }};
}

/// The types of the file, with what llama.cpp knows better: tokens whose text says that they are control tokens.
std::vector<int64_t> corrected_types(const io::GgufFile& file, const TokenTexts& tokens) {
  auto types = token_types(file, tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id)
    if (is_one_of(tokens[id], kEndsOfTurn) || is_one_of(tokens[id], kOtherControls)) types[id] = kControl;
  return types;
}

/// What both kinds of vocabulary have. `bos` and `eos` hold where the file has no key for them.
Vocabulary read_vocabulary(const io::GgufFile& file, TokenTexts tokens, const std::vector<int64_t>& types,
                           bool add_bos, std::optional<int64_t> bos, std::optional<int64_t> eos) {
  Vocabulary vocabulary;
  vocabulary.index(std::move(tokens));
  for (size_t id = 0; id < types.size(); ++id)
    if (types[id] == kControl || types[id] == kUnknown) vocabulary.special.insert(static_cast<int64_t>(id));
  const auto named = [&](const char* key, std::optional<int64_t> otherwise) {
    if (file.has_key(key)) return id_at(file, key, vocabulary);
    return otherwise && vocabulary.has(*otherwise) ? otherwise : std::nullopt;
  };
  vocabulary.bos = named("tokenizer.ggml.bos_token_id", bos);
  vocabulary.eos = named("tokenizer.ggml.eos_token_id", eos);
  vocabulary.pad = named("tokenizer.ggml.padding_token_id", std::nullopt);
  if (file.get_bool_or("tokenizer.ggml.add_bos_token", add_bos) && vocabulary.bos)
    vocabulary.prefix.push_back(*vocabulary.bos);
  if (file.get_bool_or("tokenizer.ggml.add_eos_token", false) && vocabulary.eos)
    vocabulary.suffix.push_back(*vocabulary.eos);
  if (file.has_key("tokenizer.chat_template"))
    vocabulary.chat_template = file.get_string("tokenizer.chat_template");
  const std::pair<const char*, std::optional<int64_t>> names[] = {
      {"bos_token", vocabulary.bos},
      {"eos_token", vocabulary.eos},
      {"pad_token", vocabulary.pad},
      {"unk_token", id_at(file, "tokenizer.ggml.unknown_token_id", vocabulary)},
      {"sep_token",
       id_at(file, "tokenizer.ggml.seperator_token_id", vocabulary)},  // so spelled in the format
      {"mask_token", id_at(file, "tokenizer.ggml.mask_token_id", vocabulary)}};
  for (const auto& [name, id] : names)
    if (id) vocabulary.special_tokens[name] = std::string(vocabulary.tokens[*id]);

  const auto stop_at = [&](std::optional<int64_t> id) {
    if (id && std::ranges::find(vocabulary.stops, *id) == vocabulary.stops.end())
      vocabulary.stops.push_back(*id);
  };
  for (const int64_t id : known_stops(vocabulary)) stop_at(id);
  for (const char* key : kEndKeys) stop_at(id_at(file, key, vocabulary));
  for (const auto token : kEndsOfTurn) stop_at(vocabulary.find(token));
  if (vocabulary.find("<|return|>") &&
      vocabulary.find("<|call|>"))  // there <|end|> ends a message, not a turn
    std::erase(vocabulary.stops, vocabulary.find("<|end|>").value_or(-1));
  return vocabulary;
}

/// The tokens that are looked for inside a text.
std::vector<AddedToken> tokens_in_texts(const io::GgufFile& file, const Vocabulary& vocabulary,
                                        const std::vector<int64_t>& types) {
  // Tokens of some models take white space with them, which no key of the format says.
  auto name = file.get_string_or("general.name", "");
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool phi3 = name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos;
  const auto pre = file.get_string_or("tokenizer.ggml.pre", "");
  const bool jina =
      pre.find("jina-v2-de") != std::string::npos || pre.find("jina-v2-es") != std::string::npos;
  std::vector<AddedToken> found;
  for (size_t id = 0; id < types.size(); ++id) {
    if (types[id] != kControl && types[id] != kUserDefined && types[id] != kUnknown) continue;
    AddedToken token{.content = std::string(vocabulary.tokens[id]),
                     .id = static_cast<int64_t>(id),
                     .special = types[id] != kUserDefined,
                     .ascii_space = true};
    token.lstrip = jina && token.content == "<mask>";
    token.rstrip = phi3 && !jina && token.content != "<unk>" && token.content != "<s>" &&
                   token.content != "<|endoftext|>";
    found.push_back(std::move(token));
  }
  return found;
}

std::shared_ptr<const TokenizerEngine> read_bpe(const io::GgufFile& file) {
  check<ConfigError>(
      file.has_key("tokenizer.ggml.pre"),
      "GGUF tokenizer: tokenizer.ggml.pre is missing; without it the way to cut texts is unknown");
  const auto& choice = choice_of(file.get_string("tokenizer.ggml.pre"));
  auto tokens = tokens_of(file);
  const auto types = corrected_types(file, tokens);
  auto vocabulary =
      read_vocabulary(file, std::move(tokens), types, choice.add_bos, std::nullopt, std::nullopt);
  vocabulary.kind = "byte-level BPE";

  auto added = tokens_in_texts(file, vocabulary, types);
  TokenIds own(vocabulary.tokens);
  for (size_t id = 0; id < types.size(); ++id)
    if (types[id] != kUnused) own.add(id);
  const auto pairs = file.get_texts("tokenizer.ggml.merges");
  std::vector<Bpe::Merge> merges;
  merges.reserve(pairs.size());
  for (const auto pair : pairs) {
    const size_t space = pair.find(' ', 1);  // byte-level tokens hold no space
    check<IoError>(space != std::string_view::npos,
                   "GGUF tokenizer: a merge must be two tokens with a space between, got \"", pair, "\"");
    merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
  }
  BpeOptions options{.byte_level = true, .ignore_merges = choice.ignore_merges};
  Normalizer normalizer;
  if (choice.nfc) normalizer.emplace_back(Nfc{});
  PreTokenizer pre_tokenizer;
  // add_space_prefix and remove_extra_whitespaces are of no effect on this kind of vocabulary.
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
  auto tokens = tokens_of(file);
  const auto types = corrected_types(file, tokens);
  const auto scores = file.get_floats("tokenizer.ggml.scores");
  check<IoError>(scores.size() == tokens.size(), "GGUF tokenizer: tokenizer.ggml.scores must have ",
                 tokens.size(), " entries, got ", scores.size());
  SentencePieceModel model;
  model.add_dummy_prefix = file.get_bool_or("tokenizer.ggml.add_space_prefix", true);
  model.remove_extra_whitespaces = false;  // its key is of no effect on this kind of vocabulary
  model.unknown_id = file.get_int_or("tokenizer.ggml.unknown_token_id", 0);
  model.pieces.reserve(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id)
    model.pieces.push_back(
        {std::string(tokens[id]), static_cast<float>(scores[id]), static_cast<int>(types[id])});
  auto vocabulary = read_vocabulary(file, std::move(tokens), types, true, 1, 2);
  auto found = tokens_in_texts(file, vocabulary, types);
  return sentencepiece_engine(std::move(model), std::move(vocabulary), std::move(found));
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
