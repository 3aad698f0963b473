#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::activations {

/// Documents as token ids, which can be read from any one on, again and again. A value; nothing is read until it is asked for.
class INTROSPECT_EXPORT Documents {
 public:
  /// Called for one document after another; none: there are no more. It may be empty.
  using Next = std::function<std::optional<std::vector<int64_t>>()>;

  /// `open(n)` reads from document n on. `identity` tells texts apart when a run is resumed; empty: not known.
  explicit Documents(std::function<Next(int64_t first)> open, std::string identity = {})
      : open_(std::move(open)), identity_(std::move(identity)) {}

  /// Texts are tokenised one by one as they are read, by the model's tokenizer, without special tokens around them.
  /// Throws ConfigError for a model without one.
  static Documents of_texts(std::vector<std::string> texts, std::shared_ptr<const models::Model> model);
  static Documents of_tokens(std::vector<std::vector<int64_t>> tokens);

  /// Files in their order, mapped and read document by document.
  ///
  /// .jsonl: an object a line, with "text" (or "problem", as SAELens takes it) or ids in "tokens" or "input_ids". Any other
  /// file is text in UTF-8: one document, or several with lines `<|endoftext|>` between them.
  /// Throws IoError, now, for no files and for one that cannot be opened; when it is read, for a line that is no such
  /// object, naming file and line. ConfigError for text that is not UTF-8, or where
  /// the model has no tokenizer.
  static Documents of_files(std::vector<std::filesystem::path> paths,
                            std::shared_ptr<const models::Model> model);

  Next open(int64_t first) const { return open_(first); }
  const std::string& identity() const { return identity_; }

 private:
  std::function<Next(int64_t)> open_;
  std::string identity_;
};

/// How documents become contexts, rows of one length. SAELens's names and defaults are beside those that differ.
struct PackOptions {
  int64_t context = 128;  ///< tokens of a row ("context_size")
  /// Rows begin with it ("prepend_bos" with the tokenizer's BOS); one that stands there already is not doubled.
  std::optional<int64_t> bos;
  /// Stands between the documents of a row, unless the next begins with it ("sequence_separator_token").
  std::optional<int64_t> separator;
  /// False: every document is a row of its own, what is past `context` is dropped, and so are shorter documents
  /// ("disable_concat_sequences").
  bool concatenate = true;
  /// Documents are rows already, cut to `context`; a shorter one is an error ("is_dataset_tokenized").
  bool packed = false;
  bool repeat = false;  ///< after the last document the first one follows; a row begun at the end is dropped
};

/// The options for a model's tokenizer: its BOS, or EOS where it has none, as TransformerLens does.
INTROSPECT_EXPORT PackOptions pack_options(const models::Model& model, int64_t context,
                                           bool prepend_bos = true, bool separate = true);

/// Contexts of documents, packed as SAELens packs them (concat_and_batch_sequences), one after another.
///
/// Memory is that of one document. For one thread at a time.
class INTROSPECT_EXPORT TokenStream {
 public:
  /// Throws std::invalid_argument for a context that holds no token of a text.
  TokenStream(Documents documents, PackOptions options);

  const PackOptions& options() const { return options_; }

  /// The next context, of options().context tokens; none: the end. Throws std::invalid_argument if a whole pass over the
  /// documents gives no context, or a packed row is too short.
  std::optional<std::vector<int64_t>> next();

  /// As many as there are, up to n: int64 [<= n, context].
  torch::Tensor next(int64_t n);

  /// The first n contexts of every pass over the documents are left out from now on: they are what is held out.
  void set_aside(int64_t n);

  int64_t passes() const { return pass_; }     ///< over all documents that are finished
  int64_t contexts() const { return total_; }  ///< given since the beginning

  /// Where the stream stands, as JSON; restore goes on there. Throws IoError for a state that is not one, or of other
  /// documents, options or set_aside. Documents without an identity, and the tokenizer, are told by the tokens of the
  /// document that was read last.
  std::string state() const;
  void restore(const std::string& state);

 private:
  std::optional<std::vector<int64_t>> next_of_pass();
  std::optional<std::vector<int64_t>> whole_document();
  bool read_document();
  void rewind();

  Documents documents_;
  PackOptions options_;
  Documents::Next reader_;          // undefined until the first document is wanted
  std::vector<int64_t> tokens_;     // of the document that is being packed
  std::string document_hash_;       // of its tokens
  int64_t document_ = 0;            // documents taken in this pass, that one too
  int64_t offset_ = 0;              // of its tokens, taken
  std::vector<int64_t> row_;        // begun
  int64_t pass_ = 0, of_pass_ = 0;  // contexts of this pass, those set aside too
  int64_t total_ = 0, set_aside_ = 0;
};

}  // namespace introspect::activations
