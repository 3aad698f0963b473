#include "introspect/statistics/shift_table.h"

#include <map>
#include <set>

#include "introspect/core/check.h"
#include "statistics/samples.h"

namespace introspect::statistics {
namespace {

constexpr auto kWho = "shift_table";

std::vector<ShiftRow> rows_of(std::span<const double> base, std::span<const double> injected,
                              const std::vector<std::string>& questions, std::span<const int64_t> control) {
  std::vector<ShiftRow> rows;
  std::map<std::string, size_t> place;
  for (size_t i = 0; i < base.size(); ++i) {
    const auto [found, is_new] = place.emplace(questions[i], rows.size());
    if (is_new) rows.push_back({.question = questions[i], .control = control[i] == 1});
    ShiftRow& row = rows[found->second];
    check<std::invalid_argument>(row.control == (control[i] == 1), kWho, ": question '", questions[i],
                                 "' must be an introspection or a control question, got both");
    ++row.n;
    row.base += base[i];
    row.injected += injected[i];
  }
  for (auto& row : rows) {
    row.base /= static_cast<double>(row.n);
    row.injected /= static_cast<double>(row.n);
    row.shift = row.injected - row.base;
  }
  return rows;
}

/// The bootstrap of the mean of the readings chosen, or nothing where there is nothing to draw from.
std::optional<Estimate> estimate_of(std::span<const double> shifts, const std::vector<size_t>& chosen,
                                    const std::vector<Factor>& factors, const BootstrapOptions& options) {
  std::vector<double> values;
  for (const size_t i : chosen) values.push_back(shifts[i]);
  std::vector<Factor> parts;
  bool varies = false;
  for (const auto& factor : factors) {
    Factor part{factor.name, {}, factor.within};
    for (const size_t i : chosen) part.levels.push_back(factor.levels[i]);
    varies = varies || std::set(part.levels.begin(), part.levels.end()).size() > 1;
    parts.push_back(std::move(part));
  }
  if (!varies) return std::nullopt;
  return bootstrap_mean(values, parts, options);
}

}  // namespace

ShiftTable shift_table(std::span<const double> base, std::span<const double> injected,
                       const std::vector<std::string>& questions, std::span<const int64_t> control,
                       const std::vector<Factor>& factors, const BootstrapOptions& options) {
  check_sample(kWho, "base log-odds", base, 2);
  check_sample(kWho, "injected log-odds", injected, 2);
  const size_t n = base.size();
  check<std::invalid_argument>(injected.size() == n && questions.size() == n && control.size() == n, kWho,
                               ": base, injected, questions and control must be of one length, got ", n, ", ",
                               injected.size(), ", ", questions.size(), " and ", control.size());
  std::vector<double> shifts(n);
  std::vector<int64_t> arms(n);
  std::vector<size_t> of_arm[2];
  for (size_t i = 0; i < n; ++i) {
    check<std::invalid_argument>(control[i] == 0 || control[i] == 1, kWho, ": control must be 0 or 1, got ",
                                 control[i]);
    shifts[i] = injected[i] - base[i];
    arms[i] = 1 - control[i];
    of_arm[arms[i]].push_back(i);
  }
  check<std::invalid_argument>(!of_arm[0].empty() && !of_arm[1].empty(), kWho,
                               ": readings of introspection and of control questions required, got ",
                               of_arm[1].size(), " and ", of_arm[0].size());
  std::vector<Factor> all = {{"question", questions}};
  for (const auto& factor : factors) {
    check<std::invalid_argument>(factor.levels.size() == n, kWho, ": factor '", factor.name, "' must have ",
                                 n, " levels, one for each reading, got ", factor.levels.size());
    all.push_back(factor);
  }

  ShiftTable table;
  table.rows = rows_of(base, injected, questions, control);
  const auto mean_in = [&](std::span<const double> values, int64_t arm) {
    double sum = 0;
    for (const size_t i : of_arm[arm]) sum += values[i];
    return sum / static_cast<double>(of_arm[arm].size());
  };
  table.introspection_base = mean_in(base, 1);
  table.introspection_injected = mean_in(injected, 1);
  table.control_base = mean_in(base, 0);
  table.control_injected = mean_in(injected, 0);
  table.introspection = mean_in(shifts, 1);
  table.control = mean_in(shifts, 0);
  table.introspection_interval = estimate_of(shifts, of_arm[1], all, options);
  table.control_interval = estimate_of(shifts, of_arm[0], all, options);
  table.effect = bootstrap_difference(shifts, arms, all, options);
  return table;
}

}  // namespace introspect::statistics
