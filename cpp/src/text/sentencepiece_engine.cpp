#include "text/sentencepiece_engine.h"

#include <utility>

#include "introspect/core/check.h"
#include "text/added_tokens.h"
#include "text/sentencepiece_library.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // ▁, sentencepiece's spelling of a space

class SentencePieceEngine : public TokenizerEngine {
 public:
  SentencePieceEngine(const std::string& serialized, const SentencePieceModel& model, Vocabulary vocabulary,
                      bool find_special)
      : TokenizerEngine(std::move(vocabulary),
                        {.invalid = JoinRule::Invalid::each_byte,
                         .strip_piece = model.add_dummy_prefix || model.remove_extra_whitespaces}),
        processor_(serialized),
        unknown_surface_(model.unknown_surface) {
    check<IoError>(processor_.piece_size() == static_cast<int>(this->vocabulary.tokens.size()),
                   "sentencepiece model: must have ", this->vocabulary.tokens.size(), " pieces, got ",
                   processor_.piece_size());
    for (const auto& piece : model.pieces) types_.push_back(piece.type);
    if (!find_special) return;
    std::vector<AddedToken> special;
    for (const int64_t id : this->vocabulary.special)
      special.push_back({.content = this->vocabulary.tokens[id], .id = id, .special = true});
    special_ = AddedTokenMatcher(std::move(special));
  }

  void encode(std::string_view text, std::vector<int64_t>& ids) const override {
    std::vector<int> part;
    for (const auto& piece : special_.cut(text)) {
      if (piece.token) {
        ids.push_back(piece.token->id);
        continue;
      }
      processor_.encode(piece.text, part);
      ids.insert(ids.end(), part.begin(), part.end());
    }
  }

  Piece piece(int64_t id) const override {
    const std::string& token = vocabulary.tokens[id];
    if (types_[id] == SentencePieceModel::unknown) return {unknown_surface_};
    if (types_[id] == SentencePieceModel::control) return {token};
    if (types_[id] == SentencePieceModel::byte)
      if (const auto byte = byte_of_token(token)) return {std::string(1, *byte), true};
    return {replace_all(token, kSpace, " "), false, true};
  }

 private:
  SentencePieceProcessor processor_;
  std::vector<int> types_;  // SentencePieceModel::Type, by id
  std::string unknown_surface_;
  AddedTokenMatcher special_;
};

}  // namespace

std::shared_ptr<const TokenizerEngine> read_tokenizer_model(const std::string& bytes,
                                                            const TokenizerConfig& config) {
  const auto model = SentencePieceModel::parse(bytes);
  check<IoError>(static_cast<int64_t>(model.pieces.size()) <= Vocabulary::kMaxSize,
                 "tokenizer.model: must have at most ", Vocabulary::kMaxSize, " pieces, got ",
                 model.pieces.size());
  Vocabulary vocabulary;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    vocabulary.add(model.pieces[id].text, static_cast<int64_t>(id));
    if (model.pieces[id].type == SentencePieceModel::control)
      vocabulary.special.insert(static_cast<int64_t>(id));
  }
  vocabulary.index();
  vocabulary.kind = model.kind == SentencePieceModel::bpe ? "SentencePiece BPE" : "SentencePiece Unigram";
  // The names sentencepiece gives these tokens unless it is told otherwise.
  vocabulary.bos = vocabulary.find("<s>");
  vocabulary.eos = vocabulary.find("</s>");
  vocabulary.pad = vocabulary.find("<pad>");
  if (vocabulary.bos) vocabulary.prefix = {*vocabulary.bos};
  config.apply(vocabulary);
  return std::make_shared<SentencePieceEngine>(bytes, model, std::move(vocabulary), config.present);
}

std::shared_ptr<const TokenizerEngine> sentencepiece_engine(SentencePieceModel model, Vocabulary vocabulary) {
  check<IoError>(model.unknown_id >= 0 && model.unknown_id < static_cast<int64_t>(model.pieces.size()),
                 "sentencepiece vocabulary: the unknown token's id must be in [0, ", model.pieces.size(),
                 "), got ", model.unknown_id);
  model.pieces[model.unknown_id].type = SentencePieceModel::unknown;
  for (auto& piece : model.pieces)
    piece.text = replace_all(piece.text, " ", kSpace);  // user-defined ones are plain text
  vocabulary.kind = "SentencePiece BPE";
  return std::make_shared<SentencePieceEngine>(model.serialized_bpe(), model, std::move(vocabulary), true);
}

}  // namespace introspect::text
