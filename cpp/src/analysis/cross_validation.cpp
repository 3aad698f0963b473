#include "introspect/analysis/cross_validation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>

#include "introspect/core/check.h"

namespace introspect::analysis {
namespace {

using Counts = std::vector<double>;

double standard_deviation(const Counts& values) {
  const double n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / n);
}

/// How many texts each class has. Throws what makes labels unfit for folds.
std::vector<int64_t> class_counts(const std::vector<int64_t>& labels, int64_t n_folds) {
  check<std::invalid_argument>(n_folds >= 2, "folds: there must be two or more, got ", n_folds);
  check<std::invalid_argument>(!labels.empty(), "folds: there must be labels, got none");
  check<std::invalid_argument>(*std::min_element(labels.begin(), labels.end()) >= 0,
                               "folds: labels must be classes from 0");
  std::vector<int64_t> counts(static_cast<size_t>(*std::max_element(labels.begin(), labels.end())) + 1);
  for (const int64_t label : labels) ++counts[static_cast<size_t>(label)];
  const auto n_classes = std::count_if(counts.begin(), counts.end(), [](int64_t n) { return n > 0; });
  check<std::invalid_argument>(n_classes >= 2,
                               "folds: the labels must be of two classes or more, got one class");
  return counts;
}

/// numpy.isclose with its tolerances.
bool is_close(double a, double b) {
  return std::isfinite(b) ? std::abs(a - b) <= 1e-8 + 1e-5 * std::abs(b) : a == b;
}

}  // namespace

std::vector<int64_t> stratified_folds(const std::vector<int64_t>& labels, int64_t n_folds) {
  const auto counts = class_counts(labels, n_folds);
  for (size_t k = 0; k < counts.size(); ++k)
    check<std::invalid_argument>(
        counts[k] == 0 || counts[k] >= n_folds,
        "folds: every class must have at least as many texts as there are folds, got ", counts[k],
        " of class ", k, " and ", n_folds, " folds");
  // Classes in the order in which they come; text i of all, sorted by class, belongs to fold i mod n_folds.
  std::vector<size_t> order;
  for (const int64_t label : labels)
    if (std::find(order.begin(), order.end(), static_cast<size_t>(label)) == order.end())
      order.push_back(static_cast<size_t>(label));
  std::vector<int64_t> folds(labels.size());
  int64_t first = 0;
  for (const size_t k : order) {
    std::vector<int64_t> of_class;  // fold of each of its texts, ascending
    for (int64_t i = first; i < first + counts[k]; ++i) of_class.push_back(i % n_folds);
    std::sort(of_class.begin(), of_class.end());
    first += counts[k];
    size_t next = 0;
    for (size_t i = 0; i < labels.size(); ++i)
      if (static_cast<size_t>(labels[i]) == k) folds[i] = of_class[next++];
  }
  return folds;
}

std::vector<int64_t> stratified_group_folds(const std::vector<int64_t>& labels,
                                            const std::vector<int64_t>& groups, int64_t n_folds) {
  const auto counts = class_counts(labels, n_folds);
  check<std::invalid_argument>(groups.size() == labels.size(), "folds: every text must have one group, got ",
                               groups.size(), " groups for ", labels.size(), " texts");
  auto names = groups;
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  const auto F = static_cast<size_t>(n_folds);
  check<std::invalid_argument>(names.size() >= F,
                               "folds: there must be at least as many groups as folds, got ", names.size(),
                               " groups and ", n_folds, " folds");
  std::vector<size_t> group_of;
  std::vector<Counts> of_group(names.size(), Counts(counts.size()));
  for (size_t i = 0; i < labels.size(); ++i) {
    group_of.push_back(
        static_cast<size_t>(std::lower_bound(names.begin(), names.end(), groups[i]) - names.begin()));
    of_group[group_of.back()][static_cast<size_t>(labels[i])] += 1;
  }
  std::vector<size_t> order(names.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<double> spread;
  for (const auto& group : of_group) spread.push_back(standard_deviation(group));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return spread[a] > spread[b]; });

  std::vector<Counts> of_fold(F, Counts(counts.size()));
  std::vector<size_t> fold_of_group(names.size());
  for (const size_t g : order) {
    size_t best = 0;
    double least = std::numeric_limits<double>::infinity(), fewest = least;
    for (size_t f = 0; f < F; ++f) {
      double uneven = 0;  // mean over classes of the folds' standard deviation of the class's share
      int64_t n_classes = 0;
      for (size_t k = 0; k < counts.size(); ++k) {
        if (counts[k] == 0) continue;
        Counts shares(F);
        for (size_t other = 0; other < F; ++other)
          shares[other] =
              (of_fold[other][k] + (other == f ? of_group[g][k] : 0)) / static_cast<double>(counts[k]);
        uneven += standard_deviation(shares);
        ++n_classes;
      }
      uneven /= static_cast<double>(n_classes);
      const double size = std::accumulate(of_fold[f].begin(), of_fold[f].end(), 0.0);
      if (uneven < least || (is_close(uneven, least) && size < fewest)) {
        least = uneven;
        fewest = size;
        best = f;
      }
    }
    for (size_t k = 0; k < counts.size(); ++k) of_fold[best][k] += of_group[g][k];
    fold_of_group[g] = best;
  }
  std::vector<int64_t> folds;
  for (const size_t g : group_of) folds.push_back(static_cast<int64_t>(fold_of_group[g]));
  return folds;
}

void check_folds(const std::vector<int64_t>& folds, const std::vector<int64_t>& labels) {
  check<std::invalid_argument>(folds.size() == labels.size(), "folds: every text must have one, got ",
                               folds.size(), " folds for ", labels.size(), " texts");
  const std::set<int64_t> numbers(folds.begin(), folds.end());
  check<std::invalid_argument>(numbers.size() >= 2, "folds: there must be two or more, got ", numbers.size());
  check<std::invalid_argument>(
      *numbers.begin() == 0 && *numbers.rbegin() + 1 == static_cast<int64_t>(numbers.size()),
      "folds: they must be numbered from 0 without gaps");
  const std::set<int64_t> classes(labels.begin(), labels.end());
  for (const int64_t fold : numbers)
    for (const int64_t label : classes) {
      bool found = false;
      for (size_t i = 0; i < labels.size() && !found; ++i) found = folds[i] != fold && labels[i] == label;
      check<std::invalid_argument>(
          found, "folds: every class must have texts outside of each fold, and class ", label,
          " has all of its texts in fold ", fold, ": fewer folds, or smaller groups");
    }
}

}  // namespace introspect::analysis
