#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::hooks {

/// Numbers that an operator takes beside its operand and strength, by name.
using Parameters = std::map<std::string, double>;

/// What an intervention does with the activations it selects, under a name that is data.
///
/// `add`, `ablate`, `project_out`, `replace`, `interpolate`, `scale`, `zero` and `mean` are always there
/// (hooks/intervention.h says what they do); other modules register theirs (see steering/operators.h), and so may users.
struct Operator {
  enum class Operand { kNone, kOptional, kRequired };

  /// The new values of `x`, [rows, positions, W] or [rows, positions, heads, W] (of patterns too), in its shape and
  /// out of place. The operand broadcasts against x unless check_operand is set, and is on x's device but of its own
  /// dtype; it is undefined where there is none. Every parameter is there. What is returned is rounded to x's dtype.
  using Apply = std::function<torch::Tensor(const torch::Tensor& x, const torch::Tensor& operand,
                                            double strength, const Parameters& parameters)>;

  Apply apply;
  Operand operand = Operand::kRequired;

  /// False: the strength must be 1 (or that of the identity).
  bool takes_strength = true;

  /// The strength at which nothing is changed, and at which the intervention is dropped.
  double identity = 0;

  /// Without an operand, a result depends on the other positions selected: a pass must hold them all.
  bool mixes_positions = false;

  /// For operands of other shapes than those of hooks/intervention.h: throws for one that does not fit a point of
  /// this width (undefined for scores and patterns).
  std::function<void(const torch::Tensor& operand, std::optional<int64_t> width)> check_operand = {};

  /// The parameters by name, with what one is that is not given; one without a value must be given.
  std::map<std::string, std::optional<double>> parameters = {};

  /// Throws for parameters that do not go together; null: all do.
  std::function<void(const Parameters& parameters)> check_parameters = {};
};

/// Makes an operator known by a name that is not taken yet. Safe from several threads.
/// Throws std::invalid_argument if the name is taken or there is nothing to apply.
INTROSPECT_EXPORT void register_operator(std::string_view name, Operator op);

/// The operator of a name; the reference stays valid. Throws ConfigError listing the known ones if there is none.
INTROSPECT_EXPORT const Operator& find_operator(std::string_view name);

/// The parameters given and, for all others of the operator, what it takes if they are not.
///
/// Throws std::invalid_argument for one that the operator does not have, that it needs and that is missing, or that is
/// not finite, and as its check_parameters does.
INTROSPECT_EXPORT Parameters complete_parameters(std::string_view name, const Operator& op,
                                                 const Parameters& given);

/// The names of all operators, sorted.
INTROSPECT_EXPORT std::vector<std::string> operator_names();

}  // namespace introspect::hooks
