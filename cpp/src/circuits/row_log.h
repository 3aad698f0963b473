#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <torch/types.h>

namespace introspect::circuits {

/// A row as it is kept: its features of largest weight, and sums over all of them.
struct KeptRow {
  torch::Tensor columns, weights;  // int32 [m] of active features, ascending; [m]
  torch::Tensor by_cell_E;         // all features' contributions by cell
  torch::Tensor errors_E, tokens_T, biases_B, injections_L;
  double abs_sum = 0;  // over every feature, error and token
};

/// Batches of rows in a folder, a file each, written whole or not at all: what a search that was killed goes on from.
class RowLog {
 public:
  /// Without a folder nothing is kept. `key` is what all its files must be of. Throws IoError for a folder that cannot be
  /// made.
  RowLog(std::filesystem::path folder, std::string key);

  /// The rows of a batch, of these columns (negative: targets); none if they were not written. Throws IoError for a file
  /// that is damaged or of another graph.
  std::optional<std::vector<KeptRow>> read(int64_t batch, const std::vector<int64_t>& columns) const;
  void write(int64_t batch, const std::vector<int64_t>& columns, const std::vector<KeptRow>& rows) const;

 private:
  std::filesystem::path path_of(int64_t batch) const;

  std::filesystem::path folder_;
  std::string key_;
};

}  // namespace introspect::circuits
