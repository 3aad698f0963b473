// The tokens whose log-probability an injection raised and lowered most, the most changed first:
// {"token", "id", "change" (injected - base, in nats)} each.

#include "introspect/core/check.h"
#include "introspect/ops/logits.h"
#include "introspect/text/tokenizer.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  const auto k = request.parameter ? static_cast<int64_t>(request.parameter->number()) : 0;
  if (k == 0) return std::nullopt;
  PreparedReadout out;
  out.compares = true;
  out.read = [k](const ReadoutInputs& inputs) {
    Value::Fields fields;
    if (!inputs.unsteered_logits_V.defined()) return fields;
    for (const bool raised : {true, false}) {
      const auto [changes, ids] = ops::most_changed(inputs.logits_V, inputs.unsteered_logits_V, k, raised);
      Value::List tokens;
      for (int64_t i = 0; i < ids.size(0); ++i) {
        const auto id = ids[i].item<int64_t>();
        tokens.push_back(Value::Fields{{"token", inputs.model.tokenizer().decode({id})},
                                       {"id", id},
                                       {"change", changes[i].item<double>()}});
      }
      if (!tokens.empty()) fields.emplace_back(raised ? "raised" : "lowered", std::move(tokens));
    }
    return fields;
  };
  return out;
}

std::string problem(const std::string& field, const Value& value) {
  return problem_of_list(value, field, [](const Value& one, const std::string& place) {
    return problem_of_fields(one, place,
                             {{"token", Kind::text}, {"id", Kind::whole}, {"change", Kind::number}});
  });
}

std::string problem_of_parameter(const Value& value) {
  const auto* const k = value.get_if<int64_t>();
  if (!k) return concat("must be a whole number, got ", value.to_json());
  return *k >= 0 ? "" : concat("must be 0 or more, got ", *k);
}

const bool registered = register_library_readout({
    .name = "top_k",
    .check_parameter = problem_of_parameter,
    .prepare = prepare,
    .fields = {"raised", "lowered"},
    .check = problem,
    .order = 80,
});

}  // namespace
}  // namespace introspect::experiments
