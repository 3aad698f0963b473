#include "introspect/text/tokenizer.h"

#include "introspect/core/check.h"
#include "introspect/io/file.h"
#include "introspect/io/gguf.h"
#include "text/sentencepiece_engine.h"
#include "text/tokenizer_config.h"
#include "text/tokenizer_engine.h"
#include "text/tokenizer_gguf.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

namespace fs = std::filesystem;

std::shared_ptr<const TokenizerEngine> read_file(const fs::path& file) {
  check<IoError>(fs::is_regular_file(file), "Tokenizer.load: no file ", file.string());
  if (file.extension() == ".gguf") return read_tokenizer_gguf(*io::GgufFile::open(file));
  if (file.extension() == ".json")
    return read_tokenizer_json(io::read_text(file), TokenizerConfig::read(file.parent_path()), file);
  if (file.extension() == ".model")
    return read_tokenizer_model(io::read_text(file), TokenizerConfig::read(file.parent_path()));
  throw ConfigError(concat("Tokenizer.load: the file must be a .json, .model or .gguf, got ", file.string()));
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const TokenizerEngine> engine) : engine_(std::move(engine)) {}

Tokenizer Tokenizer::load(const fs::path& path) {
  if (!fs::is_directory(path)) return Tokenizer(read_file(path));
  auto found = load_if_present(path);
  check<IoError>(found.has_value(), "Tokenizer.load: ", path.string(),
                 " must hold a tokenizer.json or a tokenizer.model, it has neither");
  return *std::move(found);
}

std::optional<Tokenizer> Tokenizer::load_if_present(const fs::path& path) {
  if (fs::is_directory(path)) {
    for (const char* name : {"tokenizer.json", "tokenizer.model"})
      if (fs::exists(path / name)) return Tokenizer(read_file(path / name));
    return std::nullopt;
  }
  if (path.extension() != ".gguf") return Tokenizer(read_file(path));
  const auto file = io::GgufFile::open(path);
  if (!file->has_key("tokenizer.ggml.model")) return std::nullopt;
  return from_gguf(*file);
}

Tokenizer Tokenizer::from_gguf(const io::GgufFile& file) {
  return Tokenizer(read_tokenizer_gguf(file));
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  require_utf8(text, "Tokenizer.encode");
  const auto& vocabulary = engine_->vocabulary;
  std::vector<int64_t> ids;
  if (add_special_tokens) ids = vocabulary.prefix;
  engine_->encode(text, ids);
  if (add_special_tokens) ids.insert(ids.end(), vocabulary.suffix.begin(), vocabulary.suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::initializer_list<int64_t> ids, bool skip_special_tokens) const {
  return decode(std::span(ids.begin(), ids.size()), skip_special_tokens);
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special_tokens) const {
  const auto& vocabulary = engine_->vocabulary;
  PieceJoiner joiner(engine_->join);
  std::string text;
  for (const int64_t id : ids) {
    check<std::out_of_range>(vocabulary.has(id), "Tokenizer.decode: every id must be a token in [0, ",
                             vocabulary.tokens.size(), "), got ", id);
    if (!skip_special_tokens || !vocabulary.special.contains(id)) text += joiner.push(engine_->piece(id));
  }
  return text + joiner.finish();
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(engine_->vocabulary.tokens.size());
}

std::string Tokenizer::id_to_token(int64_t id) const {
  check<std::out_of_range>(engine_->vocabulary.has(id),
                           "Tokenizer.id_to_token: the id must be a token in [0, ", vocab_size(), "), got ",
                           id);
  return std::string(engine_->vocabulary.tokens[id]);
}

std::optional<int64_t> Tokenizer::token_to_id(std::string_view token) const {
  return engine_->vocabulary.find(token);
}

std::optional<int64_t> Tokenizer::bos_token_id() const {
  return engine_->vocabulary.bos;
}
std::optional<int64_t> Tokenizer::eos_token_id() const {
  return engine_->vocabulary.eos;
}
std::optional<int64_t> Tokenizer::pad_token_id() const {
  return engine_->vocabulary.pad;
}

bool Tokenizer::adds_bos() const {
  const auto& vocabulary = engine_->vocabulary;
  return vocabulary.bos && !vocabulary.prefix.empty() && vocabulary.prefix.front() == *vocabulary.bos;
}

std::vector<int64_t> Tokenizer::stop_token_ids() const {
  return engine_->vocabulary.stops;
}
bool Tokenizer::is_special(int64_t id) const {
  return engine_->vocabulary.special.contains(id);
}
std::string Tokenizer::kind() const {
  return engine_->vocabulary.kind;
}
std::map<std::string, std::string> Tokenizer::special_tokens() const {
  return engine_->vocabulary.special_tokens;
}
std::optional<std::string> Tokenizer::chat_template() const {
  return engine_->vocabulary.chat_template;
}

}  // namespace introspect::text
