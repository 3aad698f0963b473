#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/activations/activation_source.h"
#include "introspect/export.h"

namespace introspect::activations {

/// How rows are mixed. SAELens's rule: rows come in until the buffer holds `buffer_rows`; it is shuffled; all but
/// mixing * buffer_rows are served, in whole batches; rows come in again.
struct MixOptions {
  int64_t batch_rows = 4096;
  int64_t buffer_rows = 65536;  ///< at least batch_rows
  double mixing = 0.5;          ///< 0: in order, not shuffled; less than 1
  uint64_t seed = 0;
};

/// Batches of activations at all sites of the same tokens, mixed over a buffer.
///
/// Memory: buffer_rows, and the rows of one pass, times the width of all sites times the bytes of their dtype, and while the
/// buffer is emptied that again times `mixing`; of a file 8 bytes a row. For one thread at a time.
class INTROSPECT_EXPORT ActivationStream {
 public:
  /// Throws std::invalid_argument for options out of range.
  ActivationStream(std::unique_ptr<ActivationSource> source, MixOptions options = {});

  const std::vector<StreamSite>& sites() const { return source_->sites(); }
  const MixOptions& options() const { return options_; }

  /// The source's first rows, which no batch has: see ActivationSource::hold_out.
  SiteRows hold_out(int64_t n) { return source_->hold_out(n); }

  /// The next batch, [batch_rows, width] at each site; empty: the end, at which less than a batch is left out.
  SiteRows next_batch();
  int64_t batches() const { return batches_; }

  /// Writes where the stream stands, the rows in its buffer included, so that `restore` goes on with the same batches bit for
  /// bit. Throws IoError, for a state of another stream too, which `check_state` looks for without going on.
  void save(const std::filesystem::path& file) const;
  void check_state(const std::filesystem::path& file) const;
  void restore(const std::filesystem::path& file);

 private:
  bool refill();

  std::unique_ptr<ActivationSource> source_;
  MixOptions options_;
  std::vector<torch::Tensor> buffer_;  // columns; the first stored_ rows are in use
  torch::Tensor order_;                // int64: the rows in the order in which they are served
  int64_t stored_ = 0, served_ = 0, to_serve_ = 0, refills_ = 0, batches_ = 0;
  bool ended_ = false;
};

}  // namespace introspect::activations
