// The answers of a localisation: the token of each passage.

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (request.protocol.answers.empty()) return std::nullopt;
  std::vector<int64_t> ids;
  for (const auto& answer : request.protocol.answers)
    ids.push_back(single_token(request.model.tokenizer(), answer));
  PreparedReadout out;
  out.own_question_only = true;
  out.fields = {{"answers", static_cast<int64_t>(ids.size())}};
  out.key = {{"answers", as_list(ids)}};
  out.read = [ids](const ReadoutInputs& inputs) -> Value::Fields {
    return {{"answers", read_tokens(inputs, ids)}};
  };
  return out;
}

const bool registered = register_library_readout({
    .name = "answers",
    .prepare = prepare,
    .fields = {"answers"},
    .check = [](const std::string& field, const Value& value) { return problem_of_tokens(value, field); },
    .by_name = false,
    .order = 20,
});

}  // namespace
}  // namespace introspect::experiments
