#include "text/sentencepiece_engine.h"

#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "introspect/core/check.h"
#include "text/added_tokens.h"
#include "text/sentencepiece_bpe.h"
#include "text/sentencepiece_library.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // ▁, sentencepiece's spelling of a space

/// How a SentencePieceEngine differs from libsentencepiece.
struct Reading {
  std::vector<AddedToken> found = {};  // looked for inside a text; each part between two is a text of its own
  bool prefix_first_only = false;  // only the part that begins the text gets sentencepiece's space in front
  bool as_transformers = false;    // decodes unknown tokens and invalid bytes as transformers does
};

JoinRule join_rule(const SentencePieceModel& model, const Reading& reading) {
  if (reading.as_transformers)
    return {.invalid = JoinRule::Invalid::whole_run, .strip_left = model.add_dummy_prefix ? 1 : 0};
  return {.invalid = JoinRule::Invalid::each_byte,
          .strip_piece = model.add_dummy_prefix || model.remove_extra_whitespaces};
}

class SentencePieceEngine : public TokenizerEngine {
 public:
  SentencePieceEngine(SentencePieceModel model, Vocabulary vocabulary, Reading reading)
      : TokenizerEngine(std::move(vocabulary), join_rule(model, reading)),
        processor_(model.serialized()),
        unknown_surface_(model.unknown_surface),
        as_transformers_(reading.as_transformers),
        found_(std::move(reading.found)) {
    check<IoError>(processor_.piece_size() == static_cast<int>(model.pieces.size()),
                   "sentencepiece model: must have ", model.pieces.size(), " pieces, got ",
                   processor_.piece_size());
    for (const auto& piece : model.pieces) types_.push_back(piece.type);
    if (!model.add_dummy_prefix || !reading.prefix_first_only) return;
    model.add_dummy_prefix = false;
    without_prefix_.emplace(model.serialized());
  }

  void encode(std::string_view text, std::vector<int64_t>& ids) const override {
    std::vector<int> part;
    TextBudget budget(text.size());
    bool at_start = true;
    for (const auto& piece : found_.cut(text, budget)) {
      if (piece.token) {
        ids.push_back(piece.token->id);
      } else {
        // transformers puts no second space before one.
        const bool prefixed =
            at_start && !is_white_space(utf8_step(piece.text).code_point) && !piece.text.starts_with(kSpace);
        const auto& processor = without_prefix_ && !prefixed ? *without_prefix_ : processor_;
        processor.encode(piece.text, part);
        ids.insert(ids.end(), part.begin(), part.end());
      }
      at_start = false;
    }
  }

  Piece piece(int64_t id) const override {
    const std::string token(vocabulary.tokens[id]);
    if (id >= static_cast<int64_t>(types_.size())) return {token};
    const int type = types_[id];
    if (type == SentencePieceModel::byte)
      if (const auto byte = byte_of_token(token)) return {std::string(1, *byte), true};
    if (as_transformers_) return {replace_all(token, kSpace, " ")};
    if (type == SentencePieceModel::unknown) return {unknown_surface_};
    if (type == SentencePieceModel::control) return {token};
    return {replace_all(token, kSpace, " "), false, true};
  }

 private:
  SentencePieceProcessor processor_;
  std::optional<SentencePieceProcessor> without_prefix_;
  std::vector<int> types_;  // SentencePieceModel::Type, by id
  std::string unknown_surface_;
  bool as_transformers_;
  AddedTokenMatcher found_;
};

SentencePieceModel parse_model(const std::string& bytes) {
  auto model = SentencePieceModel::parse(bytes);
  check<IoError>(static_cast<int64_t>(model.pieces.size()) <= Vocabulary::kMaxSize,
                 "tokenizer.model: must have at most ", Vocabulary::kMaxSize, " pieces, got ",
                 model.pieces.size());
  return model;
}

const char* kind_of(const SentencePieceModel& model) {
  return model.kind == SentencePieceModel::bpe ? "SentencePiece BPE" : "SentencePiece Unigram";
}

/// Pieces that transformers adds as tokens: control ones as special, user-defined ones where its class takes them.
std::vector<AddedToken> additional_tokens(const SentencePieceModel& model, bool with_user_defined) {
  std::vector<AddedToken> tokens;
  for (const auto& piece : model.pieces) {
    const bool is_control = piece.type == SentencePieceModel::control;
    if (is_control || (with_user_defined && piece.type == SentencePieceModel::user_defined))
      tokens.push_back({.content = piece.text, .special = is_control});
  }
  return tokens;
}

/// What added_tokens_decoder calls a piece in another way than the model.
void rename_pieces(SentencePieceModel& model, const TokenizerConfig& config) {
  std::unordered_set<std::string_view> kept;
  const auto n_pieces = static_cast<int64_t>(model.pieces.size());
  for (int64_t id = 0; id < n_pieces; ++id)
    if (!config.added.contains(id)) kept.insert(model.pieces[id].text);
  std::vector<std::pair<int64_t, std::string>> names;
  for (const auto& [id, token] : config.added)
    if (id < n_pieces && !token.content.empty() && !kept.contains(token.content))
      names.emplace_back(id, token.content);
  for (auto& [id, name] : names) model.pieces[id].text = std::move(name);
}

/// A model with no tokenizer files beside it.
std::shared_ptr<const TokenizerEngine> bare_engine(SentencePieceModel model, const TokenizerConfig& config) {
  Vocabulary vocabulary;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    vocabulary.add(model.pieces[id].text, static_cast<int64_t>(id));
    if (model.pieces[id].type == SentencePieceModel::control)
      vocabulary.special.insert(static_cast<int64_t>(id));
  }
  vocabulary.index();
  vocabulary.kind = kind_of(model);
  // The names sentencepiece gives these tokens unless it is told otherwise.
  vocabulary.bos = vocabulary.find("<s>");
  vocabulary.eos = vocabulary.find("</s>");
  vocabulary.pad = vocabulary.find("<pad>");
  if (vocabulary.bos) vocabulary.prefix = {*vocabulary.bos};
  config.apply(vocabulary);
  return std::make_shared<SentencePieceEngine>(std::move(model), std::move(vocabulary), Reading{});
}

}  // namespace

void set_model_defaults(TokenizerConfig& config, const SentencePieceModel& model) {
  if (config.tokenizer_class != TokenizerClass::backend) return;
  if (model.bos_id >= 0) config.set_default("bos_token", model.bos_piece.empty() ? "<s>" : model.bos_piece);
  if (model.eos_id >= 0) config.set_default("eos_token", model.eos_piece.empty() ? "</s>" : model.eos_piece);
  if (model.unknown_id >= 0)
    config.set_default("unk_token", model.unknown_piece.empty() ? "<unk>" : model.unknown_piece);
}

std::shared_ptr<const TokenizerEngine> read_tokenizer_model(const std::string& bytes,
                                                            TokenizerConfig config) {
  auto model = parse_model(bytes);
  if (!config.present) return bare_engine(std::move(model), config);
  set_model_defaults(config, model);
  const bool backend = config.tokenizer_class == TokenizerClass::backend;
  const bool bpe = becomes_bpe(model, config.tokenizer_class);
  const auto additional = additional_tokens(model, !backend);
  if (backend && bpe) rename_pieces(model, config);
  if (backend && model.add_dummy_prefix)
    for (auto& [id, token] : config.added) token.normalized = false;

  Vocabulary vocabulary;
  std::unordered_map<std::string, int64_t> ids;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    vocabulary.add(model.pieces[id].text, static_cast<int64_t>(id));
    ids[model.pieces[id].text] = static_cast<int64_t>(id);
  }
  AddedVocabulary added(static_cast<int64_t>(ids.size()), [&](const std::string& token) {
    const auto found = ids.find(token);
    return found == ids.end() ? std::nullopt : std::optional(found->second);
  });
  config.add_tokens(added, {}, &additional);
  auto found = vocabulary.take(added, config.split_special_tokens);
  vocabulary.index();
  config.apply(vocabulary);
  const bool adds_bos = config.tokenizer_class == TokenizerClass::code_llama;  // unless told otherwise
  if (config.add_bos_token.value_or(adds_bos) && vocabulary.bos) vocabulary.prefix = {*vocabulary.bos};
  if (config.add_eos_token.value_or(false) && vocabulary.eos) vocabulary.suffix = {*vocabulary.eos};
  if (bpe) return bpe_of_sentencepiece(model, config, std::move(vocabulary), std::move(found));
  vocabulary.kind = kind_of(model);
  const bool first_only = !config.legacy.value_or(true);
  return std::make_shared<SentencePieceEngine>(
      std::move(model), std::move(vocabulary),
      Reading{.found = std::move(found), .prefix_first_only = first_only, .as_transformers = true});
}

std::shared_ptr<const TokenizerEngine> sentencepiece_engine(SentencePieceModel model, Vocabulary vocabulary,
                                                            std::vector<AddedToken> found) {
  check<IoError>(model.unknown_id >= 0 && model.unknown_id < static_cast<int64_t>(model.pieces.size()),
                 "GGUF tokenizer: the unknown token's id must be in [0, ", model.pieces.size(), "), got ",
                 model.unknown_id);
  model.pieces[model.unknown_id].type = SentencePieceModel::unknown;
  model.kind = SentencePieceModel::bpe;
  for (auto& piece : model.pieces) {
    piece.text = replace_all(piece.text, " ", kSpace);  // user-defined ones are plain text
    model.byte_fallback |= piece.type == SentencePieceModel::byte;
  }
  model.validate("GGUF tokenizer");
  vocabulary.kind = "SentencePiece BPE";
  return std::make_shared<SentencePieceEngine>(std::move(model), std::move(vocabulary),
                                               Reading{.found = std::move(found)});
}

}  // namespace introspect::text
