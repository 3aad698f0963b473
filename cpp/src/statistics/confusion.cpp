#include "introspect/statistics/confusion.h"

#include <cmath>
#include <utility>
#include <vector>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

constexpr auto kWho = "confusion";

/// n log2 n for every n that a table of `total` trials can hold.
std::vector<double> n_log_n(size_t total) {
  std::vector<double> out(total + 1, 0.0);
  for (size_t n = 2; n <= total; ++n) out[n] = static_cast<double>(n) * std::log2(static_cast<double>(n));
  return out;
}

double sum_over(const std::vector<size_t>& counts, const std::vector<double>& terms) {
  double sum = 0;
  for (const size_t n : counts) sum += terms[n];
  return sum;
}

double n_occupied(const std::vector<size_t>& counts) {
  return static_cast<double>(std::ranges::count_if(counts, [](size_t n) { return n > 0; }));
}

}  // namespace

Confusion confusion(const Matrix& counts, double confidence, int64_t permutations, uint64_t seed) {
  const size_t rows = counts.rows, columns = counts.columns;
  check<std::invalid_argument>(rows >= 2 && columns >= rows, kWho,
                               ": at least 2 rows and as many columns required, got ", rows, " and ",
                               columns);
  check<std::invalid_argument>(permutations >= 0, kWho, ": permutations must be 0 or more, got ",
                               permutations);
  std::vector<size_t> cells, of_row(rows), of_column(columns), injected, reported;
  size_t right = 0;
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < columns; ++j) {
      const double count = counts.row(i)[j];
      check<std::invalid_argument>(count >= 0 && count <= 1e9 && count == std::floor(count), kWho,
                                   ": counts must be whole numbers of trials, got ", count);
      const auto n = static_cast<size_t>(count);
      cells.push_back(n);
      of_row[i] += n;
      of_column[j] += n;
      right += i == j ? n : 0;
      injected.insert(injected.end(), n, i);
      reported.insert(reported.end(), n, j);
    }
  }
  const size_t total = injected.size();
  check<std::invalid_argument>(total > 0, kWho, ": at least 1 trial required, got none");

  Confusion out;
  out.accuracy = proportion(static_cast<int64_t>(right), static_cast<int64_t>(total), confidence);
  out.chance = 1 / static_cast<double>(rows);
  out.p_accuracy = binomial_p(static_cast<int64_t>(right), static_cast<int64_t>(total), out.chance);

  const auto terms = n_log_n(total);
  const auto n = static_cast<double>(total);
  const double fixed = terms[total] - sum_over(of_row, terms) - sum_over(of_column, terms);
  const auto information = [&](const std::vector<size_t>& table) {
    return std::max(0.0, (fixed + sum_over(table, terms)) / n);
  };
  out.information = information(cells);
  // Entropy gains (bins - 1) / 2N nats each: H(row) + H(column) - H(both).
  const double bins = n_occupied(of_row) + n_occupied(of_column) - n_occupied(cells) - 1;
  out.information_corrected = out.information + bins / (2 * n * std::log(2.0));

  std::mt19937_64 generator(seed);
  int64_t as_much = 0;
  double sum = 0;
  std::vector<size_t> shuffled(cells.size());
  for (int64_t k = 0; k < permutations; ++k) {
    for (size_t i = total; i > 1; --i) std::swap(reported[i - 1], reported[draw_below(generator, i)]);
    std::ranges::fill(shuffled, size_t{0});
    for (size_t i = 0; i < total; ++i) ++shuffled[injected[i] * columns + reported[i]];
    const double by_chance = information(shuffled);
    sum += by_chance;
    as_much += by_chance >= out.information - 1e-12;  // equal tables summed in another order
  }
  out.information_by_chance = permutations > 0 ? sum / static_cast<double>(permutations) : std::nan("");
  out.p_information = static_cast<double>(1 + as_much) / static_cast<double>(1 + permutations);
  return out;
}

}  // namespace introspect::statistics
