#include "core/nearest.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>

namespace introspect {
namespace {

/// Levenshtein distance, for suggestions.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitution = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substitution});
    }
  }
  return row.back();
}

}  // namespace

std::string nearest_names(std::string_view name, const std::vector<std::string>& known) {
  constexpr size_t kLongest = 200;  // no name is as long, and the distance takes time by the length
  name = name.substr(0, kLongest);
  std::vector<std::pair<size_t, std::string>> candidates;
  for (const auto& other : known) candidates.emplace_back(edit_distance(name, other), other);
  const size_t n = std::min<size_t>(3, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(n),
                    candidates.end());
  std::string out;
  for (size_t i = 0; i < n; ++i) out += (i ? ", " : "") + candidates[i].second;
  return out;
}

}  // namespace introspect
