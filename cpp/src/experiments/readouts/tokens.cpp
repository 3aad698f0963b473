// The tokens of every concept, where a protocol reads "content": for each concept the token without and with a space
// before it.

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (request.protocol.read != Read::content) return std::nullopt;
  const auto ids = report_ids(request);
  PreparedReadout out;
  out.own_question_only = true;
  out.fields = {{"tokens", static_cast<int64_t>(ids.size())}};
  out.key = {{"read", as_list(ids)}};
  out.read = [ids](const ReadoutInputs& inputs) -> Value::Fields {
    return {{"tokens", read_tokens(inputs, ids)}};
  };
  return out;
}

const bool registered = register_library_readout({
    .name = "tokens",
    .prepare = prepare,
    .fields = {"tokens"},
    .check = [](const std::string& field, const Value& value) { return problem_of_tokens(value, field); },
    .by_name = false,
    .order = 10,
});

}  // namespace
}  // namespace introspect::experiments
