#include "experiments/readouts/library.h"

#include <algorithm>
#include <cmath>

#include "introspect/core/check.h"
#include "introspect/models/model.h"

namespace introspect::experiments {
namespace {

template <typename T>
int64_t rank(const T* logits, int64_t V, int64_t id) {
  return 1 + std::count_if(logits, logits + V, [&](T other) { return other > logits[id]; });
}

}  // namespace

bool is_on(const ReadoutRequest& request) {
  return request.parameter && *request.parameter == Value(true);
}

Value::List as_list(const std::vector<int64_t>& ids) {
  return {ids.begin(), ids.end()};
}

Value::Numbers as_numbers(const torch::Tensor& values) {
  const auto here = values.to(torch::kCPU, torch::kFloat64).contiguous();
  return {here.const_data_ptr<double>(), here.const_data_ptr<double>() + here.numel()};
}

Value numbers(const torch::Tensor& values) {
  check<ShapeError>(values.dim() > 0, "numbers: a tensor of one dimension or more is needed, got a scalar");
  if (values.dim() == 1) return as_numbers(values);
  Value::List out;
  for (const auto& row : values.unbind(0)) out.push_back(numbers(row));
  return out;
}

const std::vector<std::pair<std::string, Value>>& first_readouts() {
  static const std::vector<std::pair<std::string, Value>> kOff = {
      {"lens", false}, {"attention", false}, {"divergence", false}, {"top_k", 0}};
  return kOff;
}

bool is_first_readout(const std::string& name) {
  const auto& all = first_readouts();
  return std::any_of(all.begin(), all.end(), [&](const auto& one) { return one.first == name; });
}

bool is_probability(double p) {
  return std::isnan(p) || (p >= 0 && p <= 1 + kRounding);
}

std::string problem_of_number(const Value& value, const std::string& where) {
  return value.is_number() ? "" : concat(where, " must be a number");
}

std::string problem_of_numbers(const Value& value, const std::string& where) {
  if (value.get_if<Value::Numbers>()) return "";
  const auto* const list = value.get_if<Value::List>();
  const bool fits =
      list && std::all_of(list->begin(), list->end(), [](const auto& one) { return one.is_number(); });
  return fits ? "" : concat(where, " must be a list of numbers");
}

std::string problem_of_table(const Value& value, const std::string& where) {
  if (const auto* const rows = value.get_if<Value::List>()) {
    for (const auto& row : *rows)
      if (auto problem = problem_of_numbers(row, where); !problem.empty()) return problem;
    return "";
  }
  return concat(where, " must be a list of lists of numbers");
}

std::vector<int64_t> report_ids(const ReadoutRequest& request) {
  std::vector<int64_t> out;
  if (request.protocol.read != Read::content) return out;
  const auto& words = request.protocol.report_tokens;
  for (const auto& name : request.concepts) {
    const auto word = words.count(name) ? words.at(name) : name;
    out.push_back(first_token(request.model.tokenizer(), word));
    out.push_back(first_token(request.model.tokenizer(), " " + word));
  }
  return out;
}

Value::List read_tokens(const ReadoutInputs& inputs, const std::vector<int64_t>& ids) {
  const auto& logits_V = inputs.logits_V;
  const auto V = logits_V.numel();
  Value::List out;
  for (const auto id : ids) {
    const bool is_double = logits_V.scalar_type() == torch::kFloat64;
    const auto logit = is_double ? logits_V.const_data_ptr<double>()[id]
                                 : static_cast<double>(logits_V.const_data_ptr<float>()[id]);
    const auto place = is_double ? rank(logits_V.const_data_ptr<double>(), V, id)
                                 : rank(logits_V.const_data_ptr<float>(), V, id);
    out.push_back(Value::Fields{{"token", inputs.model.tokenizer().decode({id})},
                                {"id", id},
                                {"log_prob", logit - inputs.log_total},
                                {"rank", place}});
  }
  return out;
}

std::string problem_of_tokens(const Value& value, const std::string& where) {
  if (value.size() == 0) return value.get_if<Value::List>() ? "" : concat(where, " must be a list of tokens");
  const auto* const list = value.get_if<Value::List>();
  if (!list) return concat(where, " must be a list of tokens");
  for (const auto& one : *list) {
    const auto *token = one.find("token"), *id = one.find("id"), *log_prob = one.find("log_prob"),
               *rank = one.find("rank");
    if (!token || !id || !log_prob || !rank || !token->get_if<std::string>() || !id->get_if<int64_t>() ||
        !log_prob->is_number() || !rank->get_if<int64_t>())
      return concat(where, " must be of a token, id, log_prob and rank each");
    const auto& text = *token->get_if<std::string>();
    if (*rank->get_if<int64_t>() < 1 && std::isfinite(log_prob->number()))
      return concat("rank of '", text, "' must be 1 or more, got ", *rank->get_if<int64_t>());
    if (*id->get_if<int64_t>() < 0)
      return concat("id of '", text, "' must be 0 or more, got ", *id->get_if<int64_t>());
    if (log_prob->number() > kRounding)
      return concat("log_prob of '", text, "' must be 0 or less, got ", log_prob->number());
  }
  return "";
}

}  // namespace introspect::experiments
