// Log-odds of all spellings of yes against all of no, where a protocol gives more than one.

#include "introspect/ops/logits.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  const auto yes = request.yes_ids, no = request.no_ids;
  if (yes.size() + no.size() <= 2) return std::nullopt;
  PreparedReadout out;
  out.fields = {{"set_log_odds"}};
  out.key = {{"variants", Value::List{as_list(yes), as_list(no)}}};
  out.read = [yes, no](const ReadoutInputs& inputs) -> Value::Fields {
    return {{"set_log_odds", ops::set_log_odds(inputs.logits_V, yes, no).item<double>()}};
  };
  return out;
}

const bool registered = register_library_readout({
    .name = "set_log_odds",
    .prepare = prepare,
    .fields = {"set_log_odds"},
    .check = [](const std::string& field, const Value& value) { return problem_of_number(value, field); },
    .by_name = false,
    .order = 40,
});

}  // namespace
}  // namespace introspect::experiments
