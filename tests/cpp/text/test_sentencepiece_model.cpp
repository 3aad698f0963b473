#include <catch2/catch.hpp>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "introspect/core/error.h"
#include "introspect/text/tokenizer.h"

namespace fs = std::filesystem;
using introspect::text::Tokenizer;
using Ids = std::vector<int64_t>;

namespace {

// Protocol Buffers by hand: a field is its number and wire type, then a number, four bytes, or a size and bytes.
std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}
std::string number(int field, uint64_t value) {
  return varint(static_cast<uint64_t>(field) << 3) + varint(value);
}
std::string bytes(int field, const std::string& value) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(value.size()) + value;
}
std::string real(int field, float value) {
  std::string out = varint(static_cast<uint64_t>(field) << 3 | 5);
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  return out.append(raw, sizeof raw);
}

// Numbers of sentencepiece_model.proto: pieces 1 (text 1, score 2, type 3), trainer_spec 2, normalizer_spec 3.
enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };
std::string piece(const std::string& text, float score = 0, uint64_t type = kNormal) {
  return bytes(1, bytes(1, text) + real(2, score) + number(3, type));
}

const std::string kPieces =
    piece("<unk>", 0, kUnknown) + piece("a", -1) + piece("b", -2) + piece("\u2581", -3);
const std::string kBpe = bytes(2, number(3, 2));

/// A character map whose array points far outside itself.
std::string hostile_map() {
  std::string map = varint(0).substr(1);
  const uint32_t size = 64;
  char raw[4];
  std::memcpy(raw, &size, 4);
  map.append(raw, 4);
  const uint32_t unit = 0x7FFFFC00u & ~0x200u;
  std::memcpy(raw, &unit, 4);
  for (int i = 0; i < 16; ++i) map.append(raw, 4);
  return map + "x" + '\0';
}

Tokenizer load(const std::string& model) {
  const auto folder = fs::temp_directory_path() / ("introspect-spm-" + std::to_string(std::rand()));
  fs::create_directory(folder);
  std::ofstream(folder / "tokenizer.model", std::ios::binary) << model;
  struct Removed {
    fs::path path;
    ~Removed() { fs::remove_all(path); }
  } removed{folder};
  return Tokenizer::load(folder / "tokenizer.model");
}

}  // namespace

TEST_CASE("a small sentencepiece model by hand encodes", "[text]") {
  CHECK(load(kPieces).encode("ab", false) == Ids{3, 1, 2});
  CHECK(load(kPieces + number(90, 1) + bytes(91, "unknown fields")).encode("b", false) == Ids{3, 2});
}

TEST_CASE("a known field of another wire type is refused, wherever it stands", "[text]") {
  const std::string map = bytes(2, hostile_map());
  CHECK_THROWS_WITH(load(kPieces + bytes(3, map)), Catch::Contains("character map"));
  // libsentencepiece leaves the numbers out and keeps the map: a reader that took them would check an empty one.
  CHECK_THROWS_WITH(load(kPieces + bytes(3, map + number(2, 0))), Catch::Contains("wire type"));
  CHECK_THROWS_WITH(load(kPieces + bytes(3, map) + bytes(3, number(2, 0))), Catch::Contains("wire type"));
  const std::string broken[] = {
      number(1, 3),                                // pieces as a number
      bytes(1, number(1, 3)),                      // a piece's text
      bytes(1, bytes(1, "c") + bytes(2, "abcd")),  // its score
      bytes(1, bytes(1, "c") + number(2, 1)),      //
      bytes(1, bytes(1, "c") + bytes(3, "x")),     // its type
      number(2, 0),
      bytes(2, bytes(3, "x")),  // the trainer's part, the model type
      bytes(2, bytes(35, "x")),
      bytes(2, real(35, 1)),  // byte_fallback
      bytes(2, number(44, 0)),
      bytes(2, number(45, 0)),  // the unknown token's surface and piece
      bytes(2, number(46, 0)),
      bytes(2, bytes(40, "x")),  // bos, the unknown token's id
      number(3, 0),
      bytes(3, bytes(3, "x")),  // the normalizer's part, add_dummy_prefix
      bytes(3, bytes(4, "x")),
      bytes(3, real(5, 1)),  // remove_extra_whitespaces, escape_whitespaces
  };
  for (const auto& field : broken) CHECK_THROWS_AS(load(kPieces + field), introspect::IoError);
}

TEST_CASE("pieces that libsentencepiece would not take are named", "[text]") {
  const auto says = [](const std::string& model, const char* what) {
    CHECK_THROWS_WITH(load(model), Catch::Contains(what));
    CHECK_THROWS_AS(load(model), introspect::IoError);
  };
  says(kPieces + piece(""), "piece 4 must not be empty");
  says(kPieces + piece(std::string("\0a", 2)), "piece 4 must hold no zero byte");
  says(kPieces + kBpe + piece(std::string("\0a", 2), 0, kUserDefined), "piece 4 must hold no zero byte");
  says(kPieces + piece("a"), "stands twice");
  says(kPieces + piece("\xFF"), "UTF-8");
  says(kPieces + piece("c", std::numeric_limits<float>::quiet_NaN()), "finite");
  says(kPieces + piece("c", 0, 9), "type of piece 4");
  says(kPieces + piece("c", 0, kUnknown), "unknown");
  says(piece("a"), "unknown");
  says(kPieces + piece("<0x0A>", 0, kByte), "byte_fallback");
  says(kPieces + bytes(2, number(35, 1)), "256 bytes");
  says(kPieces + bytes(2, number(3, 7)), "model type");
  says("", "no pieces");
}
