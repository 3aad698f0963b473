#include "introspect/activations/token_stream.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "core/json.h"

namespace introspect::activations {
namespace {

using Tokens = std::vector<int64_t>;

constexpr auto kWho = "TokenStream: ";

/// What a row is made of: two streams of one text are the same if this is.
nlohmann::json made_of(const Documents& documents, const PackOptions& options) {
  const auto or_null = [](const std::optional<int64_t>& id) {
    return id ? nlohmann::json(*id) : nlohmann::json();
  };
  return {{"documents", documents.identity()},  {"context", options.context},
          {"bos", or_null(options.bos)},        {"separator", or_null(options.separator)},
          {"concatenate", options.concatenate}, {"packed", options.packed}};
}

}  // namespace

PackOptions pack_options(const models::Model& model, int64_t context, bool prepend_bos, bool separate) {
  const auto& tokenizer = model.tokenizer();
  const auto bos = tokenizer.bos_token_id() ? tokenizer.bos_token_id() : tokenizer.eos_token_id();
  PackOptions out;
  out.context = context;
  if (prepend_bos) out.bos = bos;
  if (separate) out.separator = bos;
  return out;
}

TokenStream::TokenStream(Documents documents, PackOptions options)
    : documents_(std::move(documents)), options_(options) {
  const int64_t least = options.bos ? 2 : 1;
  check<std::invalid_argument>(options.context >= least, kWho, "context must be ", least,
                               options.bos ? " or more, BOS being one of them, got " : " or more, got ",
                               options.context);
}

bool TokenStream::read_document() {
  if (!reader_) reader_ = documents_.open(document_);
  auto tokens = reader_();
  if (!tokens) return false;
  tokens_ = std::move(*tokens);
  document_hash_ =
      sha256_hex({reinterpret_cast<const char*>(tokens_.data()), tokens_.size() * sizeof(int64_t)});
  ++document_;
  offset_ = 0;
  return true;
}

std::optional<Tokens> TokenStream::whole_document() {
  while (read_document()) {
    const auto context = static_cast<size_t>(options_.context);
    auto row = std::move(tokens_);
    tokens_.clear();
    if (options_.packed) {
      check<std::invalid_argument>(row.size() >= context, kWho, "row ", document_ - 1, " has ", row.size(),
                                   " tokens, fewer than the context of ", context);
    } else if (options_.bos && row.size() + 1 >= context && (row.empty() || row.front() != *options_.bos)) {
      row.insert(row.begin(), *options_.bos);
    }
    if (row.size() < context) continue;
    row.resize(context);
    return row;
  }
  return std::nullopt;
}

std::optional<Tokens> TokenStream::next_of_pass() {
  if (options_.packed || !options_.concatenate) return whole_document();
  const auto context = static_cast<size_t>(options_.context);
  const auto put = [&](const std::optional<int64_t>& id) {  // unless what follows is that token
    if (id && tokens_[static_cast<size_t>(offset_)] != *id && row_.size() < context) row_.push_back(*id);
  };
  while (true) {
    while (offset_ == static_cast<int64_t>(tokens_.size()))
      if (!read_document()) return std::nullopt;
    if (row_.empty())
      put(options_.bos);
    else
      put(options_.separator);
    const auto n = std::min(context - row_.size(), tokens_.size() - static_cast<size_t>(offset_));
    const auto first = tokens_.begin() + offset_;
    row_.insert(row_.end(), first, first + static_cast<int64_t>(n));
    offset_ += static_cast<int64_t>(n);
    if (row_.size() == context) return std::exchange(row_, {});
  }
}

void TokenStream::rewind() {
  reader_ = nullptr;
  tokens_.clear();
  row_.clear();
  document_hash_.clear();
  document_ = offset_ = of_pass_ = 0;
}

std::optional<Tokens> TokenStream::next() {
  while (true) {
    if (auto row = next_of_pass()) {
      if (++of_pass_ <= set_aside_) continue;
      ++total_;
      return row;
    }
    check<std::invalid_argument>(
        of_pass_ > set_aside_, kWho, "the texts must fill at least one context of ", options_.context,
        " tokens", set_aside_ > 0 ? concat(" beside the ", set_aside_, " that are held out") : "", ", and ",
        document_, " documents fill ", of_pass_);
    if (!options_.repeat) return std::nullopt;
    ++pass_;
    rewind();
  }
}

torch::Tensor TokenStream::next(int64_t n) {
  Tokens all;
  int64_t rows = 0;
  for (; rows < n; ++rows) {
    const auto row = next();
    if (!row) break;
    all.insert(all.end(), row->begin(), row->end());
  }
  return torch::tensor(all, torch::kLong).view({rows, options_.context});
}

void TokenStream::set_aside(int64_t n) {
  set_aside_ = n;
}

std::string TokenStream::state() const {
  return nlohmann::json{{"of", made_of(documents_, options_)},
                        {"document", document_},
                        {"offset", offset_},
                        {"in_document", offset_ < static_cast<int64_t>(tokens_.size())},
                        {"document_hash", document_hash_},
                        {"set_aside", set_aside_},
                        {"row", row_},
                        {"pass", pass_},
                        {"of_pass", of_pass_},
                        {"total", total_}}
      .dump();
}

void TokenStream::restore(const std::string& state) {
  const auto who = concat(kWho, "the state to go on from");
  const auto json = parse_json<IoError>(state, who);
  const JsonField<IoError> field(json, who + ": ");
  const auto here = made_of(documents_, options_);
  for (const auto& [key, value] : here.items())
    field.at("of").at(key).require(field.at("of").at(key).value() == value, "must be ", value.dump(),
                                   " as now, got ", field.at("of").at(key).value().dump());
  // States of earlier versions have neither set_aside nor document_hash.
  if (field.has("set_aside"))
    field.at("set_aside")
        .require(field.at("set_aside").integer() == set_aside_, "must be the ", set_aside_,
                 " contexts that are held out now, got ", field.at("set_aside").value().dump());
  rewind();
  row_ = field.at("row").integers();
  pass_ = field.at("pass").integer();
  of_pass_ = field.at("of_pass").integer();
  total_ = field.at("total").integer();
  document_ = field.at("document").integer();
  const auto offset = field.at("offset").integer();
  const bool in_document = field.at("in_document").boolean();
  field.require(document_ > 0 || !in_document, "is inside of no document");
  if (document_ == 0) return;
  --document_;
  const auto number = document_;
  field.require(read_document() && (!in_document || offset <= static_cast<int64_t>(tokens_.size())) &&
                    (!field.has("document_hash") || field.at("document_hash").text() == document_hash_),
                "is not of these texts or this tokenizer: document ", number, " must have the tokens it had");
  if (in_document)
    offset_ = offset;
  else
    tokens_.clear();
}

}  // namespace introspect::activations
