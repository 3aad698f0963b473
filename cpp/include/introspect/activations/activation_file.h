#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/activations/activation_source.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/io/file.h"

namespace introspect::activations {

/// Rows of activations at several sites on disk, so that many dictionaries are trained from one pass over a text.
///
/// A folder of two files: rows.bin, the rows one after another, all sites of a token side by side, in bfloat16, float32 or
/// float64 as the machine has them; and activations.json: sites, dtype, number of rows, SHA-256 of pieces of rows.bin, and
/// where writing stands. A value; the rows are mapped, and read as they are used.
class INTROSPECT_EXPORT ActivationFile {
 public:
  /// Throws IoError for a folder that holds no activations, is shorter than it says or, with `verify`, whose bytes are not
  /// those that were written (the whole file is read).
  static ActivationFile open(const std::filesystem::path& folder, bool verify = true);

  const std::filesystem::path& path() const { return path_; }
  const std::vector<StreamSite>& sites() const { return sites_; }
  torch::ScalarType dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  bool is_complete() const {
    return complete_;
  }  ///< false: writing was broken off; the rows that there are are good
  const std::string& notes() const { return notes_; }  ///< JSON: what the writer said of them

  /// Rows first to last of a site, [last - first, width], a view of the file: never to be written to.
  torch::Tensor read(size_t site, int64_t first, int64_t last) const;
  /// Rows int64 [N] at all sites.
  SiteRows read(const torch::Tensor& rows_N) const;

 private:
  ActivationFile() = default;

  std::filesystem::path path_;
  std::vector<StreamSite> sites_;
  torch::ScalarType dtype_ = torch::kFloat32;
  int64_t rows_ = 0;
  bool complete_ = false;
  std::string notes_ = "{}";
  std::shared_ptr<const io::MappedFile> file_;
  torch::Tensor all_NW_;  // over the mapping
};

struct WriteActivationsOptions {
  int64_t rows = 0;               ///< to write; 0: to the source's end
  int64_t commit_rows = 1 << 15;  ///< after so many rows, or a minute, what is written is safe
  bool resume = false;            ///< goes on with what a broken-off run left in the folder
  std::string notes = "{}";       ///< JSON, kept in the file
  Progress progress;
};

/// Rows on their way into a folder, whoever has read them: the part of `write_activations` that writes.
///
/// For one thread at a time. What was committed stays when the writer goes without `finish`.
class INTROSPECT_EXPORT ActivationWriter {
 public:
  /// `source_state`: where the source stands before its first row. Of sites, widths must be known.
  /// Throws as `write_activations`.
  ActivationWriter(std::filesystem::path folder, const std::vector<StreamSite>& sites,
                   torch::ScalarType dtype, const std::string& source_state,
                   const WriteActivationsOptions& options = {});
  ~ActivationWriter();
  ActivationWriter(const ActivationWriter&) = delete;
  ActivationWriter& operator=(const ActivationWriter&) = delete;

  int64_t rows() const;                     ///< written, by the run that was broken off too
  bool is_complete() const;                 ///< `finish` was called, by this run or the one before
  bool is_full() const;                     ///< that, or options.rows are written
  const std::string& source_state() const;  ///< after the last rows

  /// Adds [N, width] at each site, down to options.rows. Throws ShapeError for other widths or dtypes, IoError for a full disk.
  void write(const SiteRows& rows, const std::string& source_state);
  void commit();  ///< what was written is safe from now on
  ActivationFile finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes rows of a source into a folder, made if it is not there. What a killed run has committed stays readable, marked as
/// partial; `resume` goes on there, from the same source and options, to the same bytes.
///
/// Throws IoError for a folder that holds activations already, and for a full disk. With `resume` a folder, a complete
/// one too, must hold rows of the same source (ActivationSource::check_state) and not another number than is asked for.
/// Folders of versions that did not say what their rows are made of are not gone on with; a complete one is opened where
/// sites, dtype, rows and the notes' "model_hash", "context_size" and "prepend_bos" are the same. What is refused stays
/// as it is.
INTROSPECT_EXPORT ActivationFile write_activations(ActivationSource& source,
                                                   const std::filesystem::path& folder,
                                                   const WriteActivationsOptions& options = {});

/// The rows of a file in their order as a source. With `repeat` the first row follows the last.
INTROSPECT_EXPORT std::unique_ptr<ActivationSource> file_activations(ActivationFile file,
                                                                     bool repeat = false);

}  // namespace introspect::activations
