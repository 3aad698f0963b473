#include "text/sentencepiece_model.h"

#include <bit>
#include <cstring>

#include "introspect/core/check.h"
#include "io/utf8.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

// Field numbers of sentencepiece_model.proto.
enum ModelField { kPieces = 1, kTrainerSpec = 2, kNormalizerSpec = 3 };
enum PieceField { kText = 1, kScore = 2, kType = 3 };
enum TrainerField { kModelType = 3, kByteFallback = 35, kUnknownSurface = 44 };
enum NormalizerField { kName = 1, kCharacterMap = 2, kAddDummyPrefix = 3, kRemoveExtraWhitespaces = 4 };

// Wire types of Protocol Buffers.
enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

struct Field {
  uint64_t number = 0;
  uint64_t value = 0;      // of a number
  std::string_view bytes;  // of a string or message
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t tag = varint();
    field = {tag >> 3, 0, {}};
    switch (tag & 7) {
      case kVarint:
        field.value = varint();
        break;
      case kFixed64:
        field.value = fixed<uint64_t>();
        break;
      case kFixed32:
        field.value = fixed<uint32_t>();
        break;
      case kBytes:
        field.bytes = take(varint());
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
    if (field.number == kText) piece.text = field.bytes;
    if (field.number == kScore) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == kType) piece.type = static_cast<int>(field.value);
  }
  return piece;
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

}  // namespace

SentencePieceModel SentencePieceModel::parse(std::string_view bytes) {
  SentencePieceModel model;
  Reader reader(bytes);
  for (Field part; reader.next(part);) {
    if (part.number == kPieces) model.pieces.push_back(parse_piece(part.bytes));
    Reader inside(part.bytes);
    if (part.number == kTrainerSpec) {
      for (Field field; inside.next(field);) {
        if (field.number == kModelType) model.kind = static_cast<int64_t>(field.value);
        if (field.number == kUnknownSurface) model.unknown_surface = field.bytes;
      }
    } else if (part.number == kNormalizerSpec) {
      for (Field field; inside.next(field);) {
        if (field.number == kCharacterMap) model.normalization = field.bytes;
        if (field.number == kAddDummyPrefix) model.add_dummy_prefix = field.value != 0;
        if (field.number == kRemoveExtraWhitespaces) model.remove_extra_whitespaces = field.value != 0;
      }
    }
  }
  for (size_t id = 0; id < model.pieces.size(); ++id)
    check<IoError>(io::is_utf8(model.pieces[id].text), "tokenizer.model: piece ", id, " must be UTF-8");
  check<IoError>(io::is_utf8(model.unknown_surface),
                 "tokenizer.model: the unknown token's text must be UTF-8");
  check<IoError>(!model.pieces.empty(), "tokenizer.model: not a sentencepiece model, it has no pieces");
  check_character_map(model.normalization);
  return model;
}

std::string SentencePieceModel::serialized_bpe() const {
  std::string out;
  for (const auto& piece : pieces) {
    std::string message;
    put(message, kText, std::string_view(piece.text));
    put(message, kScore, piece.score);
    put(message, kType, static_cast<uint64_t>(piece.type));
    put(out, kPieces, std::string_view(message));
  }
  std::string trainer, normalizer;
  put(trainer, kModelType, uint64_t{bpe});
  put(trainer, kByteFallback, uint64_t{1});
  put(out, kTrainerSpec, std::string_view(trainer));
  put(normalizer, kName, std::string_view("identity"));
  put(normalizer, kAddDummyPrefix, uint64_t{add_dummy_prefix});
  put(normalizer, kRemoveExtraWhitespaces, uint64_t{remove_extra_whitespaces});
  put(out, kNormalizerSpec, std::string_view(normalizer));
  return out;
}

}  // namespace introspect::text
