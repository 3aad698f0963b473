#include "text/sentencepiece_model.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <unordered_set>
#include <utility>

#include "introspect/core/check.h"
#include "io/utf8.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {
namespace {

// Field numbers of sentencepiece_model.proto.
enum ModelField { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum PieceField { kText = 1, kScore = 2, kType = 3 };
enum TrainerField {
  kModelType = 3,
  kWhitespaceAsSuffix = 24,
  kByteFallback = 35,
  kUnknownId = 40,
  kBosId = 41,
  kEosId = 42,
  kUnknownSurface = 44,
  kUnknownPiece = 45,
  kBosPiece = 46,
  kEosPiece = 47
};
enum NormalizerField {
  kCharacterMap = 2,
  kAddDummyPrefix = 3,
  kRemoveExtraWhitespaces = 4,
  kEscapeWhitespaces = 5
};

// Wire types of Protocol Buffers.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// One field of a message. Its value is asked for by type: a parser of Protocol Buffers leaves out a known field that
/// comes with another wire type, and a value that only one of two readers sees could pass the checks of neither.
class Field {
 public:
  uint64_t number() const { return number_; }
  std::string_view bytes() const { return require(kBytes), bytes_; }
  uint64_t varint() const { return require(kVarint), value_; }
  /// An int32 or enum: negative ones are written as 64 bits.
  int64_t integer() const { return static_cast<int32_t>(varint()); }
  bool boolean() const { return varint() != 0; }
  float number32() const {
    require(kFixed32);
    return std::bit_cast<float>(static_cast<uint32_t>(value_));
  }

 private:
  friend class Reader;
  void require(Wire wire) const {
    check<IoError>(wire_ == wire, "tokenizer.model: field ", number_, " must have the wire type ", wire,
                   ", got ", wire_);
  }

  uint64_t number_ = 0;
  int wire_ = kVarint;
  uint64_t value_ = 0;      // of a number
  std::string_view bytes_;  // of a string or message
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {};
    field.number_ = tag >> 3;
    field.wire_ = static_cast<int>(tag & 7);
    switch (field.wire_) {
      case kVarint:
        field.value_ = varint();
        break;
      case kFixed64:
        field.value_ = fixed<uint64_t>();
        break;
      case kFixed32:
        field.value_ = fixed<uint32_t>();
        break;
      case kBytes:
        field.bytes_ = take(varint());
        break;
      default:
        throw IoError("tokenizer.model: not a sentencepiece model");
    }
    return true;
  }

 private:
  std::string_view take(uint64_t size) {
    check<IoError>(size <= rest_.size(), "tokenizer.model is truncated: a field needs ", size, " bytes, ",
                   rest_.size(), " are left");
    const auto taken = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return taken;
  }
  template <typename T>
  T fixed() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    throw IoError("tokenizer.model: not a sentencepiece model");
  }

  std::string_view rest_;
};

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put(std::string& out, int field, uint64_t value) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | kVarint);
  put_varint(out, value);
}

void put(std::string& out, int field, std::string_view bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

void put(std::string& out, int field, float value) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | kFixed32);
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

SentencePieceModel::Piece parse_piece(std::string_view bytes) {
  SentencePieceModel::Piece piece;
  Reader reader(bytes);
  for (Field field; reader.next(field);) {
    if (field.number() == kText) piece.text = field.bytes();
    if (field.number() == kScore) piece.score = field.number32();
    if (field.number() == kType) piece.type = static_cast<int>(field.integer());
  }
  return piece;
}

void parse_trainer(std::string_view bytes, SentencePieceModel& model) {
  Reader reader(bytes);
  for (Field field; reader.next(field);) {
    switch (field.number()) {
      case kModelType:
        model.kind = field.integer();
        break;
      case kWhitespaceAsSuffix:
        model.whitespace_as_suffix = field.boolean();
        break;
      case kByteFallback:
        model.byte_fallback = field.boolean();
        break;
      case kUnknownId:
        model.unknown_id = field.integer();
        break;
      case kBosId:
        model.bos_id = field.integer();
        break;
      case kEosId:
        model.eos_id = field.integer();
        break;
      case kUnknownSurface:
        model.unknown_surface = field.bytes();
        break;
      case kUnknownPiece:
        model.unknown_piece = field.bytes();
        break;
      case kBosPiece:
        model.bos_piece = field.bytes();
        break;
      case kEosPiece:
        model.eos_piece = field.bytes();
        break;
      default:
        break;
    }
  }
}

void parse_normalizer(std::string_view bytes, SentencePieceModel& model) {
  Reader reader(bytes);
  for (Field field; reader.next(field);) {
    if (field.number() == kCharacterMap) model.normalization = field.bytes();
    if (field.number() == kAddDummyPrefix) model.add_dummy_prefix = field.boolean();
    if (field.number() == kRemoveExtraWhitespaces) model.remove_extra_whitespaces = field.boolean();
    if (field.number() == kEscapeWhitespaces) model.escape_whitespaces = field.boolean();
  }
}

/// A character map is the size of a double array, the array (darts-clone) and the replacements it points to, each ended
/// by a zero byte.
void check_character_map(std::string_view map) {
  if (map.empty()) return;
  uint32_t size = 0;
  const bool has_size = map.size() > sizeof size;
  if (has_size) std::memcpy(&size, map.data(), sizeof size);
  check<IoError>(
      has_size && size % 4 == 0 && size > 0 && size < map.size() - sizeof size && map.back() == '\0',
      "tokenizer.model: the character map must hold its array and replacements, got ", map.size(), " bytes");
  const auto array = map.substr(sizeof size, size);
  const uint64_t replacements = map.size() - sizeof size - size;
  for (uint64_t i = 0; i < size / 4; ++i) {
    uint32_t unit;
    std::memcpy(&unit, array.data() + 4 * i, sizeof unit);
    const bool is_value = unit >> 31;
    const uint64_t child = i ^ (unit >> 10 << ((unit & 1 << 9) >> 6));  // plus a label, in the low byte
    check<IoError>(is_value ? (unit & 0x7FFFFFFF) < replacements : (child | 0xFF) < size / 4,
                   "tokenizer.model: unit ", i, " of the character map points outside it");
  }
}

/// Whether a double array of darts-clone can hold the text: it ends keys at a NUL.
bool fits_a_trie(std::string_view text) {
  return !text.empty() && text.find('\0') == std::string_view::npos;
}

}  // namespace

SentencePieceModel SentencePieceModel::parse(std::string_view bytes) {
  SentencePieceModel model;
  Reader reader(bytes);
  for (Field part; reader.next(part);) {
    if (part.number() == kPieces) model.pieces.push_back(parse_piece(part.bytes()));
    if (part.number() == kTrainerSpec) parse_trainer(part.bytes(), model);
    if (part.number() == kNormalizerSpec) parse_normalizer(part.bytes(), model);
  }
  check<IoError>(!model.pieces.empty(), "tokenizer.model: not a sentencepiece model, it has no pieces");
  model.validate("tokenizer.model");
  return model;
}

void SentencePieceModel::validate(const char* who) const {
  check<IoError>(kind >= unigram && kind <= character, who, ": the model type must be 1 to 4, got ", kind);
  // Pieces that texts are made of, and the others: libsentencepiece holds them in two tables.
  std::unordered_set<std::string_view> ordinary, reserved;
  ordinary.reserve(pieces.size());
  std::array<bool, 256> has_byte{};
  int64_t n_unknown = 0, n_bytes = 0;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const auto& [text, score, type] = pieces[id];
    const bool in_trie = kind == unigram || type == user_defined;
    check<IoError>(!text.empty(), who, ": piece ", id, " must not be empty");
    check<IoError>(io::is_utf8(text), who, ": piece ", id, " must be UTF-8");
    check<IoError>(!in_trie || fits_a_trie(text), who, ": piece ", id, " must hold no zero byte");
    const bool is_ordinary = type == normal || type == user_defined || type == unused;
    check<IoError>((is_ordinary ? ordinary : reserved).insert(text).second, who, ": piece ", id, " (\"", text,
                   "\") stands twice");
    check<IoError>(std::isfinite(score), who, ": the score of piece ", id, " must be finite");
    check<IoError>(type >= normal && type <= byte, who, ": the type of piece ", id, " must be 1 to 6, got ",
                   type);
    n_unknown += type == unknown;
    if (type != byte) continue;
    const auto value = byte_of_token(text);
    check<IoError>(byte_fallback && value && text == token_of_byte(*value), who, ": piece ", id, " (\"", text,
                   "\") is of the type byte, which needs a text like <0x0A> and byte_fallback");
    n_bytes += !std::exchange(has_byte[static_cast<unsigned char>(*value)], true);
  }
  check<IoError>(n_unknown == 1, who, ": one piece must be of the type unknown, got ", n_unknown);
  check<IoError>(!byte_fallback || n_bytes == 256, who,
                 ": byte_fallback needs a piece for each of 256 bytes, got ", n_bytes);
  for (const std::string& text : {unknown_surface, unknown_piece, bos_piece, eos_piece})
    check<IoError>(io::is_utf8(text), who, ": the names of the special tokens must be UTF-8");
  check_character_map(normalization);
}

std::string SentencePieceModel::serialized() const {
  std::string out;
  for (const auto& piece : pieces) {
    std::string message;
    put(message, kText, std::string_view(piece.text));
    put(message, kScore, piece.score);
    put(message, kType, static_cast<uint64_t>(piece.type));
    put(out, kPieces, std::string_view(message));
  }
  std::string trainer, normalizer;
  put(trainer, kModelType, static_cast<uint64_t>(kind));
  put(trainer, kWhitespaceAsSuffix, uint64_t{whitespace_as_suffix});
  put(trainer, kByteFallback, uint64_t{byte_fallback});
  put(out, kTrainerSpec, std::string_view(trainer));
  if (!normalization.empty()) put(normalizer, kCharacterMap, std::string_view(normalization));
  put(normalizer, kAddDummyPrefix, uint64_t{add_dummy_prefix});
  put(normalizer, kRemoveExtraWhitespaces, uint64_t{remove_extra_whitespaces});
  put(normalizer, kEscapeWhitespaces, uint64_t{escape_whitespaces});
  put(out, kNormalizerSpec, std::string_view(normalizer));
  return out;
}

}  // namespace introspect::text
