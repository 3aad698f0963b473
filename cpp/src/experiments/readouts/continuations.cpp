// The log-probability of texts that are given, each after the read position, in nats.

#include <stdexcept>

#include "introspect/core/check.h"
#include "introspect/text/tokenizer.h"

#include "experiments/readouts/library.h"
#include "experiments/text_log_prob.h"

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
    if (texts.back().size() > 1) out.needs.push_back(residuals_of(request, texts.back()));
    key.push_back(as_list(texts.back()));
  }
  out.fields = {{"continuations", request.parameter->size()}};
  out.key = {{"continuations", key}};
  out.settings = {{"continuations", *request.parameter}};
  out.read = [texts](const ReadoutInputs& inputs) -> Value::Fields {
    Value::Numbers log_probs;
    size_t next = 0;
    for (const auto& ids : texts) {
      const auto first = static_cast<double>(inputs.logits_V[ids[0]].item<double>()) - inputs.log_total;
      const auto resid_TD = ids.size() > 1 ? inputs.needed[next++].select(1, 0) : torch::Tensor();
      log_probs.push_back(first + rest_log_prob(inputs.model, ids, resid_TD));
    }
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
