// Entropy of the next token, and of injected readings KL(injected || base), in nats.

#include "introspect/core/check.h"
#include "introspect/ops/logits.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!is_on(request)) return std::nullopt;
  PreparedReadout out;
  out.compares = true;
  out.fields = {{"entropy"}};
  out.read = [](const ReadoutInputs& inputs) {
    Value::Fields fields{{"entropy", ops::entropy(inputs.logits_V).item<double>()}};
    if (inputs.unsteered_logits_V.defined())
      fields.emplace_back("kl",
                          ops::kl_divergence(inputs.logits_V, inputs.unsteered_logits_V).item<double>());
    return fields;
  };
  return out;
}

std::string problem(const std::string& field, const Value& value) {
  if (auto what = problem_of_number(value, field); !what.empty()) return what;
  const bool is_negative = field == "entropy" && value.number() < -kRounding;
  return is_negative ? concat("entropy must be 0 or more, got ", value.number()) : "";
}

const bool registered = register_library_readout({
    .name = "divergence",
    .prepare = prepare,
    .fields = {"entropy", "kl"},
    .check = problem,
    .order = 70,
});

}  // namespace
}  // namespace introspect::experiments
