#include <algorithm>
#include <memory>
#include <utility>

#include <torch/types.h>
#include <nlohmann/json.hpp>

#include "introspect/activations/token_stream.h"
#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "introspect/io/file.h"

#include "core/json.h"

namespace introspect::activations {
namespace {

using Tokens = std::vector<int64_t>;
namespace fs = std::filesystem;

constexpr auto kWho = "Documents: ";
constexpr std::string_view kSeparator = "<|endoftext|>";
constexpr size_t kSample = size_t{1} << 20;  // bytes of a file's ends that tell it apart

/// Lengths stand before the parts, so that no two lists are one message.
void add(Sha256& hash, const void* bytes, size_t size) {
  hash.update(concat(size, ":")).update(bytes, size);
}

template <typename T>
std::shared_ptr<const T> shared(T value) {
  return std::make_shared<const T>(std::move(value));
}

bool is_json_lines(const fs::path& path) {
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

std::string_view without_carriage_return(std::string_view line) {
  return line.ends_with('\r') ? line.substr(0, line.size() - 1) : line;
}

/// The documents of files as pieces of their text.
class FileReader {
 public:
  FileReader(std::shared_ptr<const std::vector<fs::path>> paths, std::shared_ptr<const models::Model> model)
      : paths_(std::move(paths)), model_(std::move(model)) {}

  /// Passes over one document without tokenising it; false: there are no more.
  bool skip() { return piece().has_value(); }

  std::optional<Tokens> next() {
    const auto text = piece();
    if (!text) return std::nullopt;
    return is_json_ ? of_json(*text) : encode(*text);
  }

 private:
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(file_->bytes().data()), file_->bytes().size()};
  }
  fs::path path() const { return (*paths_)[next_file_ - 1]; }

  std::string_view line() {
    const auto rest = bytes().substr(at_);
    const auto end = std::min(rest.find('\n'), rest.size());
    at_ += std::min(end + 1, rest.size());
    ++line_;
    return without_carriage_return(rest.substr(0, end));
  }

  std::optional<std::string_view> piece() {
    while (true) {
      while (!file_ || at_ >= bytes().size()) {
        if (next_file_ == paths_->size()) return std::nullopt;
        is_json_ = is_json_lines((*paths_)[next_file_]);
        file_ = io::MappedFile::open((*paths_)[next_file_++]);
        at_ = 0, line_ = 0;
      }
      file_->check_unchanged();
      const auto begin = at_;
      if (is_json_) {
        const auto text = line();
        if (text.find_first_not_of(" \t") != std::string_view::npos) return text;
        continue;
      }
      while (at_ < bytes().size()) {
        const auto here = at_;
        if (line() == kSeparator) return bytes().substr(begin, here - begin);
      }
      return bytes().substr(begin);
    }
  }

  Tokens encode(std::string_view text) const {
    return model_->tokenizer().encode(text, /*add_special_tokens=*/false);
  }

  Tokens of_json(std::string_view text) const {
    const auto who = concat(kWho, path().string(), ": line ", line_);
    const auto json = parse_json<IoError>(text, who);
    const JsonField<IoError> row(json, who + ": ");
    for (const char* key : {"tokens", "input_ids"})
      if (row.has(key)) return row.at(key).integers();
    for (const char* key : {"text", "problem"})
      if (row.has(key)) return encode(row.at(key).text());
    row.require(false, R"(the row must be an object with "text", "problem", "tokens" or "input_ids", got )",
                describe(json));
    return {};
  }

  std::shared_ptr<const std::vector<fs::path>> paths_;
  std::shared_ptr<const models::Model> model_;
  std::shared_ptr<const io::MappedFile> file_;
  size_t next_file_ = 0, at_ = 0;
  int64_t line_ = 0;
  bool is_json_ = false;
};

}  // namespace

Documents Documents::of_texts(std::vector<std::string> texts, std::shared_ptr<const models::Model> model) {
  model->tokenizer();
  Sha256 hash;
  for (const auto& text : texts) add(hash, text.data(), text.size());
  const auto all = shared(std::move(texts));
  auto open = [all, model = std::move(model)](int64_t first) -> Next {
    return [all, model, at = static_cast<size_t>(first)]() mutable -> std::optional<Tokens> {
      if (at >= all->size()) return std::nullopt;
      return model->tokenizer().encode((*all)[at++], /*add_special_tokens=*/false);
    };
  };
  return Documents(std::move(open), "texts " + hash.hex());
}

Documents Documents::of_tokens(std::vector<Tokens> tokens) {
  Sha256 hash;
  for (const auto& row : tokens) add(hash, row.data(), row.size() * sizeof(int64_t));
  const auto all = shared(std::move(tokens));
  auto open = [all](int64_t first) -> Next {
    return [all, at = static_cast<size_t>(first)]() mutable -> std::optional<Tokens> {
      if (at >= all->size()) return std::nullopt;
      return (*all)[at++];
    };
  };
  return Documents(std::move(open), "tokens " + hash.hex());
}

Documents Documents::of_files(std::vector<fs::path> paths, std::shared_ptr<const models::Model> model) {
  check<IoError>(!paths.empty(), kWho, "at least one file is needed, got none");
  Sha256 hash;
  for (const auto& path : paths) {
    const auto file = io::MappedFile::open(path);
    const auto bytes = file->bytes();
    const auto n = std::min(kSample, bytes.size());
    hash.update(concat(bytes.size(), ":"));
    add(hash, bytes.data(), n);
    add(hash, bytes.data() + bytes.size() - n, n);
  }
  const auto all = shared(std::move(paths));
  auto open = [all, model = std::move(model)](int64_t first) -> Next {
    const auto reader = std::make_shared<FileReader>(all, model);
    for (int64_t i = 0; i < first && reader->skip();) ++i;
    return [reader] { return reader->next(); };
  };
  return Documents(std::move(open), "files " + hash.hex());
}

}  // namespace introspect::activations
