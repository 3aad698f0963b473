// The exact probability of answers, each of which may be several texts: what is said, without sampling.

#include <cmath>

#include "introspect/core/check.h"
#include "introspect/experiments/answers.h"

#include "experiments/readouts/library.h"
#include "experiments/text_tree.h"

namespace introspect::experiments {
namespace {

constexpr auto kField = "answer_shares";

/// {"label": ["text", ...], ...}
AnswerTexts as_texts(const Value& parameter) {
  AnswerTexts out;
  for (const auto& [label, texts] : *parameter.get_if<Value::Fields>()) {
    out.emplace_back(label, std::vector<std::string>{});
    if (const auto* const list = texts.get_if<Value::List>())  // an empty list holds numbers
      for (const auto& text : *list) out.back().second.push_back(*text.get_if<std::string>());
  }
  return out;
}

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!request.parameter || request.parameter->size() == 0) return std::nullopt;
  const Answers answers(as_texts(*request.parameter), request.model.tokenizer());
  PreparedReadout out;
  Value::List key;
  for (const auto& sequence : answers.sequences())
    key.push_back(Value::Fields{{"label", answers.labels()[sequence.label]}, {"ids", as_list(sequence.ids)}});
  const TextTree tree(answers.ids());
  for (const auto& path : tree.paths()) out.needs.push_back(residuals_after(request, path));
  out.n_logits = tree.n_beginnings();
  out.fields = {{kField, static_cast<int64_t>(answers.labels().size())}};
  out.key = {{kField, key}};
  out.settings = {{kField, *request.parameter}};
  out.read = [answers, tree](const ReadoutInputs& inputs) -> Value::Fields {
    auto probabilities = tree.rest_log_probs(inputs.model, last_residuals(inputs));
    for (size_t i = 0; i < probabilities.size(); ++i) {
      const auto first = inputs.logits_V[answers.sequences()[i].ids[0]].item<double>() - inputs.log_total;
      probabilities[i] = std::exp(first + probabilities[i]);
    }
    Value::Fields shares;
    const auto found = answers.shares(probabilities);
    for (size_t i = 0; i < found.size(); ++i) shares.emplace_back(answers.labels()[i], found[i]);
    return {{kField, shares}};
  };
  return out;
}

std::string problem_of_answers(const Value& value) {
  const auto* const labels = value.get_if<Value::Fields>();
  if (!labels) return concat("must be {label: [texts]}, got ", value.to_json());
  for (const auto& [label, texts] : *labels) {
    const auto* const list = texts.get_if<Value::List>();
    if (!list || list->empty())
      return concat("must have a list of texts for '", label, "', got ", texts.to_json());
    for (const auto& text : *list)
      if (!text.get_if<std::string>())
        return concat("must have a list of texts for '", label, "', got ", text.to_json(), " in it");
  }
  return "";
}

std::string problem_of_shares(const std::string& field, const Value& value) {
  const auto* const shares = value.get_if<Value::Fields>();
  if (!shares) return wrong(field, "{label: probability}", value);
  for (const auto& [label, share] : *shares)
    if (!share.is_number() || !is_probability(share.number()))
      return wrong(concat(field, "['", label, "']"), "a probability", share);
  return "";
}

const bool registered = register_library_readout({
    .name = kField,
    .check_parameter = problem_of_answers,
    .prepare = prepare,
    .fields = {kField},
    .check = problem_of_shares,
    .order = 110,
});

}  // namespace
}  // namespace introspect::experiments
