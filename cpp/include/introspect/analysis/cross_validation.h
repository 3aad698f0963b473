#pragma once

#include <cstdint>
#include <vector>

#include "introspect/export.h"

namespace introspect::analysis {

/// The fold of each text, 0 to n_folds - 1, with every class spread evenly: scikit-learn's StratifiedKFold(n_folds).
///
/// Texts of a class go to the folds in blocks, in their order. Throws std::invalid_argument for fewer than two folds,
/// labels of one class, negative labels, or a class with fewer texts than folds.
INTROSPECT_EXPORT std::vector<int64_t> stratified_folds(const std::vector<int64_t>& labels, int64_t n_folds);

/// The same with each group whole in one fold: scikit-learn's StratifiedGroupKFold(n_folds).
///
/// Groups of few classes are dealt out first, each to the fold that leaves the classes' shares most even.
/// Throws as stratified_folds (a class may have fewer texts than folds), and std::invalid_argument for another number of
/// groups than labels or fewer groups than folds.
INTROSPECT_EXPORT std::vector<int64_t> stratified_group_folds(const std::vector<int64_t>& labels,
                                                              const std::vector<int64_t>& groups,
                                                              int64_t n_folds);

/// Throws std::invalid_argument unless every class has texts outside of each fold, naming class and fold.
INTROSPECT_EXPORT void check_folds(const std::vector<int64_t>& folds, const std::vector<int64_t>& labels);

}  // namespace introspect::analysis
