// Attention of every head from the read position to the injected spans, summed over their tokens: [L][H].

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!is_on(request)) return std::nullopt;
  PreparedReadout out;
  out.needs = {Need::attention_to_spans()};
  out.fields = {{"attention"}};
  out.read = [](const ReadoutInputs& inputs) -> Value::Fields {
    return {{"attention", numbers(inputs.needed[0])}};
  };
  return out;
}

const bool registered = register_library_readout({
    .name = "attention",
    .prepare = prepare,
    .fields = {"attention"},
    .check = [](const std::string& field, const Value& value) { return problem_of_table(value, field); },
    .order = 60,
});

}  // namespace
}  // namespace introspect::experiments
