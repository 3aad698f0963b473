#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "circuits/attribution_rows.h"
#include "circuits/feature_layers.h"
#include "circuits/frozen_model.h"
#include "circuits/graph_targets.h"
#include "circuits/row_log.h"
#include "introspect/circuits/attribute.h"

namespace introspect::circuits {

/// The search of a graph: rows of its targets, then of the features that matter most so far.
class GraphSearch {
 public:
  /// `key`: what rows in options.rows_folder must be of. Throws std::invalid_argument for a budget without room for a row.
  GraphSearch(const FrozenModel& frozen, const FeatureLayers& features, const AttributeOptions& options,
              std::string key);

  /// Throws std::invalid_argument if features' rows would take longer than options.time_budget.
  void run(const Targets& targets);

  /// What run would take, by the time that some of its rows take.
  AttributionPlan plan(const Targets& targets);

  const RowMaker& maker() const { return maker_; }
  const std::vector<int64_t>& columns() const { return columns_; }  ///< with a row
  std::vector<KeptRow>& rows() { return rows_; }
  std::vector<KeptRow>& target_rows() { return target_rows_; }

 private:
  void begin(const Targets& targets);
  int64_t wanted() const { return std::min(options_.max_features, maker_.n_features()); }
  void report() const;
  RowTarget target_of(int64_t column) const;

  /// The rows of batch `batch_number_`, from the log if it has them.
  std::vector<KeptRow> logged(const std::vector<int64_t>& columns, const std::vector<RowTarget>& targets);
  std::vector<KeptRow> make(const std::vector<RowTarget>& targets);
  template <typename RowOf>
  void keep_features(const torch::Tensor& features_RN, const std::vector<RowTarget>& targets,
                     const RowOf& row_of) const;

  /// Features without a row yet, those through which most of the targets runs as far as rows are known.
  std::vector<int64_t> next_columns(int64_t n) const;

  /// Operations of a row, and of all that are wanted if they lie as active features do.
  double cost(const RowTarget& target) const;
  double cost_of_all() const;

  const FrozenModel& frozen_;
  const FeatureLayers& features_;
  RowMaker maker_;
  const AttributeOptions& options_;
  RowLog log_;
  int64_t batch_ = 1, batch_number_ = 0;
  std::vector<double> target_weights_;
  std::vector<KeptRow> target_rows_, rows_;
  std::vector<int64_t> columns_;  // of rows_
  std::vector<bool> done_;
};

}  // namespace introspect::circuits
