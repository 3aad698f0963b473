#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/operands.h"

namespace introspect::hooks {

/// Numbers that an operator takes beside its operands and strength, by name.
using Parameters = std::map<std::string, double>;

/// What an intervention does with the activations it selects, under a name that is data.
///
/// `add`, `ablate`, `project_out`, `replace`, `interpolate`, `scale`, `zero` and `mean` are always there
/// (hooks/intervention.h says what they do); other modules register theirs (see steering/operators.h), and so may users.
struct Operator {
  /// What an operator is given. Tensors are on x's device, operands in their own dtype.
  struct Input {
    const torch::Tensor&
        x;  ///< the selection, [rows, positions, W] or [rows, positions, heads, W] (of patterns too)
    const Operands& operands;  ///< those of the layer; "v" broadcasts against x unless check_operands is set
    const torch::Tensor&
        source;  ///< of the same rows and positions, all heads; undefined unless reads_source
    double strength = 1;
    const Parameters& parameters;  ///< every one is there

    const torch::Tensor& v() const { return operands.v(); }
  };

  /// The new values of x, in its shape and out of place. They are rounded to its dtype.
  using Apply = std::function<torch::Tensor(const Input&)>;

  enum class Need { kOptional, kRequired };

  /// The size of the last dimension at an intervention's point and at its source; undefined for scores and patterns.
  struct Widths {
    std::optional<int64_t> x, source;
  };

  Apply apply;

  /// The operands by name.
  std::map<std::string, Need> operands = {{"v", Need::kRequired}};

  /// True: an intervention must name a source, a point that is only read.
  bool reads_source = false;

  /// False: the strength must be 1 (or that of the identity).
  bool takes_strength = true;

  /// The strength at which nothing is changed, and at which the intervention is dropped.
  double identity = 0;

  /// Without an operand, a result depends on the other positions selected: a pass must hold them all.
  bool mixes_positions = false;

  /// For operands that are not "v" alone, or of other shapes than those of hooks/intervention.h: throws for those that
  /// do not fit points of these widths.
  std::function<void(const Operands& operands, const Widths& widths)> check_operands = {};

  /// The parameters by name, with what one is that is not given; one without a value must be given.
  std::map<std::string, std::optional<double>> parameters = {};

  /// Throws for parameters that do not go together; null: all do.
  std::function<void(const Parameters& parameters)> check_parameters = {};

  /// True: `apply` does nothing but work of x's device, the same whenever it is called, and waits for none of it: it may be
  /// recorded once and replayed (models/generate.h).
  bool is_replayable = false;
};

/// Makes an operator known by a name that is not taken yet. Safe from several threads.
///
/// Throws std::invalid_argument if the name is taken, there is nothing to apply, or nothing checks operands of other
/// names than "v".
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
