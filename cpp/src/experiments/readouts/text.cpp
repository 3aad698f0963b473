// What the model goes on with, where a protocol reads "sample".

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (request.protocol.read != Read::sample) return std::nullopt;
  const auto& how = request.protocol.sampling;
  PreparedReadout out;
  out.own_question_only = true;
  out.reads_text = true;
  out.fields = {{"text"}};
  out.key = {{"sampling", Value::List{how.max_new_tokens, how.temperature, how.top_p, how.top_k}}};
  if (how.temperature > 0) out.key.emplace_back("seed", static_cast<int64_t>(request.options.seed));
  out.read = [](const ReadoutInputs& inputs) -> Value::Fields { return {{"text", inputs.text}}; };
  return out;
}

const bool registered = register_library_readout({
    .name = "text",
    .prepare = prepare,
    .fields = {"text"},
    .check = [](const std::string& field, const Value& value) -> std::string {
      return value.get_if<std::string>() ? "" : wrong(field, "text", value);
    },
    .by_name = false,
    .order = 30,
});

}  // namespace
}  // namespace introspect::experiments
