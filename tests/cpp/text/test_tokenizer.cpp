#include <catch2/catch.hpp>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "introspect/core/error.h"
#include "introspect/text/stream_decoder.h"
#include "introspect/text/tokenizer.h"

namespace fs = std::filesystem;
using introspect::text::StreamDecoder;
using introspect::text::Tokenizer;
using Ids = std::vector<int64_t>;

namespace {

/// A folder of its own that is gone after the test.
struct Folder {
  fs::path path = fs::temp_directory_path() / ("introspect-text-" + std::to_string(std::rand()));
  Folder() { fs::create_directory(path); }
  ~Folder() { fs::remove_all(path); }
  fs::path write(const char* name, const std::string& text) const {
    std::ofstream(path / name, std::ios::binary) << text;
    return path / name;
  }
};

// "ab" is merged before "bc", "Ġ" is a space, "Ã" and "©" are the two bytes of é.
const std::string kByteLevel = R"({
  "added_tokens": [{"id": 9, "content": "<end>", "special": true, "normalized": false}],
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
  "decoder": {"type": "ByteLevel"},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "bc": 5, "Ġab": 6, "Ã": 7, "©": 8},
            "merges": ["a b", "b c", "Ġ ab"]}})";

}  // namespace

TEST_CASE("byte-level BPE merges by rank, leftmost first, within words", "[text]") {
  const Folder folder;
  const auto tokenizer = Tokenizer::load(folder.write("tokenizer.json", kByteLevel));
  CHECK(tokenizer.encode("abc") == Ids{4, 2});
  CHECK(tokenizer.encode("bcab") == Ids{5, 4});
  CHECK(tokenizer.encode("ab ab") == Ids{4, 6});
  CHECK(tokenizer.encode("") == Ids{});
  CHECK(tokenizer.encode("a<end>b") == Ids{0, 9, 1});
  CHECK(tokenizer.vocab_size() == 10);
  CHECK(tokenizer.kind() == "byte-level BPE");
}

TEST_CASE("decoding gives the bytes back and special tokens on request", "[text]") {
  const Folder folder;
  const auto tokenizer = Tokenizer::load(folder.write("tokenizer.json", kByteLevel));
  CHECK(tokenizer.decode(Ids{6, 7, 8, 9}) == " ab\u00e9<end>");
  CHECK(tokenizer.decode(Ids{6, 7, 8, 9}, true) == " ab\u00e9");
  CHECK(tokenizer.decode(Ids{7, 0}) == "\uFFFDa");
  CHECK_THROWS_AS(tokenizer.decode(Ids{10}), std::out_of_range);
  CHECK_THROWS_AS(tokenizer.decode(Ids{-1}), std::out_of_range);
}

TEST_CASE("a stream holds a character back until its last byte has come", "[text]") {
  const Folder folder;
  StreamDecoder stream(Tokenizer::load(folder.write("tokenizer.json", kByteLevel)));
  CHECK(stream.push(0) == "a");
  CHECK(stream.push(7).empty());
  CHECK(stream.push(8) == "\u00e9");
  CHECK(stream.push(7).empty());
  CHECK(stream.finish() == "\uFFFD");
  CHECK(stream.push(1) == "b");
  CHECK(stream.push(9).empty());
  CHECK_THROWS_AS(stream.push(10), std::out_of_range);
}

TEST_CASE("text that is not UTF-8 is refused with the position of the byte", "[text]") {
  const Folder folder;
  const auto tokenizer = Tokenizer::load(folder.write("tokenizer.json", kByteLevel));
  for (const std::string bad : {"ab\xFF", "ab\xC3", "ab\xED\xA0\x80", "ab\xC0\x80", "ab\xF4\x90\x80\x80"})
    CHECK_THROWS_WITH(tokenizer.encode(bad), Catch::Contains("byte 2 "));
  CHECK_THROWS_AS(tokenizer.encode("\xFF"), introspect::ConfigError);
}

TEST_CASE("ids can be written as a list", "[text]") {
  const Folder folder;
  const auto tokenizer = Tokenizer::load(folder.write("tokenizer.json", kByteLevel));
  const int64_t id = 4;
  CHECK(tokenizer.decode({id}) == "ab");
  CHECK(tokenizer.decode({6, 9, 0}, true) == " aba");
  CHECK(tokenizer.decode({}) == "");
}

TEST_CASE("several threads encode and decode with one tokenizer", "[text]") {
  const Folder folder;
  const std::string split =
      R"({"type": "Sequence", "pretokenizers": [
          {"type": "Split", "pattern": {"Regex": " ?\\p{L}+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated"},
          {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})";
  std::string json = kByteLevel;
  const std::string plain = R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})";
  json.replace(json.find(plain), plain.size(), split);
  const auto tokenizer = Tokenizer::load(folder.write("tokenizer.json", json));
  // Each thread has words of its own, so that shared state of the matcher or of a cache would give another's ids.
  const auto text_of = [](int thread) {
    std::string text;
    for (int i = 0; i < 200; ++i)
      text += std::string(1 + (i + thread) % 7, "abc"[(i + thread) % 3]) + " <end>";
    return text;
  };
  std::vector<Ids> expected;
  for (int thread = 0; thread < 4; ++thread) expected.push_back(tokenizer.encode(text_of(thread)));
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      const auto text = text_of(thread);
      for (int i = 0; i < 50; ++i) {
        const auto ids = tokenizer.encode(text);
        wrong += ids != expected[thread] || tokenizer.decode(ids) != text;
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("the folder's config names special tokens and the chat template", "[text]") {
  const Folder folder;
  folder.write("tokenizer.json", kByteLevel);
  folder.write("tokenizer_config.json",
               R"({"bos_token": {"content": "<end>"}, "eos_token": "<end>", "pad_token": null,
                                            "add_bos_token": true, "chat_template": "{{ messages }}"})");
  const auto tokenizer = Tokenizer::load(folder.path);
  CHECK(tokenizer.bos_token_id() == 9);
  CHECK(tokenizer.eos_token_id() == 9);
  CHECK_FALSE(tokenizer.pad_token_id().has_value());
  // As in transformers 5: what goes around a text is tokenizer.json's own affair, add_bos_token is tokenizer.model's.
  CHECK(tokenizer.encode("a") == Ids{0});
  CHECK(tokenizer.special_tokens() ==
        std::map<std::string, std::string>{{"bos_token", "<end>"}, {"eos_token", "<end>"}});
  CHECK(tokenizer.stop_token_ids() == Ids{9});
  CHECK(tokenizer.chat_template() == "{{ messages }}");
}

TEST_CASE("what is missing or unknown is said by type", "[text]") {
  const Folder folder;
  CHECK_FALSE(Tokenizer::load_if_present(folder.path).has_value());
  CHECK_THROWS_AS(Tokenizer::load(folder.path), introspect::IoError);
  CHECK_THROWS_AS(Tokenizer::load(folder.path / "tokenizer.json"), introspect::IoError);
  CHECK_THROWS_AS(Tokenizer::load(folder.write("tokenizer.json", "{")), introspect::IoError);
  CHECK_THROWS_AS(Tokenizer::load(folder.write("tokenizer.json", R"({"model": {"type": "WordPiece"}})")),
                  introspect::ConfigError);
  CHECK_THROWS_AS(Tokenizer::load(folder.write("tokenizer.model", "not a model")), introspect::IoError);
}
