#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/statistics/bootstrap.h"

namespace introspect::statistics {

/// One question: means over what was read with it, log-odds in nats.
struct ShiftRow {
  std::string question;
  bool control = false;
  int64_t n = 0;
  double base = 0, injected = 0, shift = 0;
};

/// Introspection and control questions side by side.
struct ShiftTable {
  std::vector<ShiftRow> rows;  // in the order in which the questions first come
  double introspection_base = 0, introspection_injected = 0, control_base = 0, control_injected = 0;
  double introspection = 0, control = 0;  // mean shifts
  std::optional<Estimate> introspection_interval,
      control_interval;  // where there are two levels to draw from
  Estimate effect;       // introspection - control: what is left of the shift apart from a general yes-bias
};

/// Shifts of log-odds by injection, of introspection questions beside control questions.
///
/// base, injected: log-odds of each reading. questions: the question of each reading. control: 1 for
/// readings of control questions, 0 for introspection. factors: what else readings share, concepts or paraphrases, each
/// resampled as well; the questions are a factor named "question", within which paraphrases can lie. An arm with one
/// question is conditional on it: its interval holds what the other factors vary.
/// Throws std::invalid_argument for lists of other lengths, values that are not finite, an arm without readings, a
/// question in both arms, or fewer than two levels to draw from.
/// Source: the difference of two means under the bootstrap of bootstrap.h.
INTROSPECT_EXPORT ShiftTable shift_table(std::span<const double> base, std::span<const double> injected,
                                         const std::vector<std::string>& questions,
                                         std::span<const int64_t> control,
                                         const std::vector<Factor>& factors = {},
                                         const BootstrapOptions& options = {});

}  // namespace introspect::statistics
