#include "introspect/core/check.h"
#include "introspect/io/gguf.h"
#include "introspect/text/chat.h"
#include "text/tokenizer_config.h"

namespace introspect::text {
namespace {

std::optional<ChatSource> find_in_folder(const std::filesystem::path& folder) {
  const auto config = TokenizerConfig::read(folder);
  if (!config.chat_template) return std::nullopt;
  ChatSource found{*config.chat_template, {}};
  if (config.bos_token) found.special_tokens["bos_token"] = *config.bos_token;
  if (config.eos_token) found.special_tokens["eos_token"] = *config.eos_token;
  if (config.pad_token) found.special_tokens["pad_token"] = *config.pad_token;
  return found;
}

std::optional<ChatSource> find_in_gguf(const io::GgufFile& file) {
  if (!file.has_key("tokenizer.chat_template")) return std::nullopt;
  ChatSource found{file.get_string("tokenizer.chat_template"), {}};
  if (!file.has_key("tokenizer.ggml.tokens")) return found;
  const auto tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto spell = [&](const char* name, const char* key) {
    const int64_t id = file.get_int_or(key, -1);
    if (id >= 0 && id < static_cast<int64_t>(tokens.size())) found.special_tokens[name] = tokens[id];
  };
  spell("bos_token", "tokenizer.ggml.bos_token_id");
  spell("eos_token", "tokenizer.ggml.eos_token_id");
  spell("pad_token", "tokenizer.ggml.padding_token_id");
  return found;
}

}  // namespace

std::optional<ChatSource> ChatSource::find(const std::filesystem::path& path) {
  return std::filesystem::is_directory(path) ? find_in_folder(path) : find_in_gguf(*io::GgufFile::open(path));
}

}  // namespace introspect::text
