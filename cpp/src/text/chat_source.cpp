#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/gguf.h"
#include "introspect/text/chat.h"
#include "text/sentencepiece_engine.h"
#include "text/tokenizer_config.h"

namespace introspect::text {
namespace {

using Tokens = std::map<std::string, std::string>;

/// The folder whose files speak for `path`: itself, or that of a tokenizer file; nullopt for a .gguf file.
std::optional<std::filesystem::path> folder_of(const std::filesystem::path& path) {
  if (std::filesystem::is_directory(path)) return path;
  const bool beside_others = path.extension() == ".json" || path.extension() == ".model";
  return beside_others ? std::optional(path.parent_path()) : std::nullopt;
}

Tokens tokens_of_folder(const std::filesystem::path& folder, TokenizerConfig config) {
  const auto model = folder / "tokenizer.model";
  if (config.present && !std::filesystem::exists(folder / "tokenizer.json") && std::filesystem::exists(model))
    set_model_defaults(config, SentencePieceModel::parse(io::read_text(model)));
  Tokens tokens;
  for (const auto& [name, token] : config.special_tokens()) tokens[name] = token.content;
  return tokens;
}

Tokens tokens_of_gguf(const io::GgufFile& file) {
  Tokens found;
  if (!file.has_key("tokenizer.ggml.tokens")) return found;
  const auto tokens = file.get_strings("tokenizer.ggml.tokens");
  const bool scored =
      file.get_string_or("tokenizer.ggml.model", "") == "llama";  // has llama.cpp's own defaults
  const auto spell = [&](const char* name, const char* key, int64_t otherwise) {
    const int64_t id = file.get_int_or(key, otherwise);
    if (id >= 0 && id < static_cast<int64_t>(tokens.size())) found[name] = tokens[id];
  };
  spell("bos_token", "tokenizer.ggml.bos_token_id", scored ? 1 : -1);
  spell("eos_token", "tokenizer.ggml.eos_token_id", scored ? 2 : -1);
  spell("pad_token", "tokenizer.ggml.padding_token_id", -1);
  spell("unk_token", "tokenizer.ggml.unknown_token_id", -1);
  spell("sep_token", "tokenizer.ggml.seperator_token_id", -1);  // so spelled in the format
  spell("mask_token", "tokenizer.ggml.mask_token_id", -1);
  return found;
}

}  // namespace

std::optional<ChatSource> ChatSource::find(const std::filesystem::path& path) {
  if (const auto folder = folder_of(path)) {
    auto config = TokenizerConfig::read(*folder);
    if (!config.chat_template) return std::nullopt;
    auto source = *config.chat_template;
    return ChatSource{std::move(source), tokens_of_folder(*folder, std::move(config))};
  }
  const auto file = io::GgufFile::open(path);
  if (!file->has_key("tokenizer.chat_template")) return std::nullopt;
  return ChatSource{file->get_string("tokenizer.chat_template"), tokens_of_gguf(*file)};
}

std::map<std::string, std::string> ChatSource::special_tokens_of(const std::filesystem::path& path) {
  const auto folder = folder_of(path);
  return folder ? tokens_of_folder(*folder, TokenizerConfig::read(*folder))
                : tokens_of_gguf(*io::GgufFile::open(path));
}

}  // namespace introspect::text
