// The log-probability of texts that are given, each after the read position, in nats.

#include <stdexcept>

#include "introspect/core/check.h"
#include "introspect/text/tokenizer.h"

#include "experiments/readouts/library.h"
#include "experiments/text_tree.h"

namespace introspect::experiments {
namespace {

using Ids = std::vector<int64_t>;

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!request.parameter || request.parameter->size() == 0) return std::nullopt;
  std::vector<Ids> texts;
  PreparedReadout out;
  Value::List key;
  for (const auto& text : *request.parameter->get_if<Value::List>()) {
    const auto& words = *text.get_if<std::string>();
    texts.push_back(request.model.tokenizer().encode(words, /*add_special_tokens=*/false));
    check<std::invalid_argument>(!texts.back().empty(),
                                 "run_experiment: a continuation must have a token, got '", words, "'");
    key.push_back(as_list(texts.back()));
  }
  const TextTree tree(texts);
  for (const auto& path : tree.paths()) out.needs.push_back(residuals_after(request, path));
  out.n_logits = tree.n_beginnings();
  out.fields = {{"continuations", request.parameter->size()}};
  out.key = {{"continuations", key}};
  out.settings = {{"continuations", *request.parameter}};
  out.read = [texts, tree](const ReadoutInputs& inputs) -> Value::Fields {
    auto log_probs = tree.rest_log_probs(inputs.model, last_residuals(inputs));
    for (size_t i = 0; i < texts.size(); ++i)
      log_probs[i] += inputs.logits_V[texts[i][0]].item<double>() - inputs.log_total;
    return {{"continuations", log_probs}};
  };
  return out;
}

std::string problem_of_parameter(const Value& value) {
  const auto* const texts = value.get_if<Value::List>();
  if (!texts) return concat("must be a list of texts, got ", value.to_json());
  for (const auto& text : *texts)
    if (!text.get_if<std::string>()) return concat("must be a list of texts, got ", text.to_json(), " in it");
  return "";
}

const bool registered = register_library_readout({
    .name = "continuations",
    .check_parameter = problem_of_parameter,
    .prepare = prepare,
    .fields = {"continuations"},
    .check = [](const std::string& field, const Value& value) { return problem_of_numbers(value, field); },
    .order = 100,
});

}  // namespace
}  // namespace introspect::experiments
