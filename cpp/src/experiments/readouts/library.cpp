#include "experiments/readouts/library.h"

#include <algorithm>
#include <cmath>

#include "core/json.h"
#include "introspect/core/check.h"
#include "introspect/models/model.h"

#include "experiments/value_json.h"

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

std::string wrong(const std::string& where, const std::string& required, const Value& got) {
  return concat(where, " must be ", required, ", got ", describe(nlohmann::json(json_of(got))));
}

std::string problem_of_number(const Value& value, const std::string& where) {
  return value.is_number() ? "" : wrong(where, "a number", value);
}

std::string problem_of_numbers(const Value& value, const std::string& where) {
  if (value.get_if<Value::Numbers>()) return "";
  return problem_of_list(value, where, problem_of_number);
}

std::string problem_of_table(const Value& value, const std::string& where) {
  return problem_of_list(value, where, problem_of_numbers);
}

std::string problem_of_list(const Value& value, const std::string& where, const CheckElement& check) {
  if (const auto* const numbers = value.get_if<Value::Numbers>())  // one is like another
    return numbers->empty() ? "" : check(numbers->front(), where + "[0]");
  const auto* const list = value.get_if<Value::List>();
  if (!list) return wrong(where, "a list", value);
  for (size_t i = 0; i < list->size(); ++i)
    if (auto problem = check((*list)[i], concat(where, "[", i, "]")); !problem.empty()) return problem;
  return "";
}

std::string problem_of_fields(const Value& value, const std::string& where,
                              const std::vector<std::pair<std::string, Kind>>& fields) {
  if (!value.get_if<Value::Fields>()) return wrong(where, "an object", value);
  for (const auto& [name, kind] : fields) {
    const auto* const field = value.find(name);
    const auto place = where + "." + name;
    if (!field) return place + " is missing";
    if (kind == Kind::text && !field->get_if<std::string>()) return wrong(place, "text", *field);
    if (kind == Kind::whole && !field->get_if<int64_t>()) return wrong(place, "a whole number", *field);
    if (kind == Kind::number && !field->is_number()) return wrong(place, "a number", *field);
  }
  return "";
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

Need residuals_after(const ReadoutRequest& request, const std::vector<int64_t>& ids) {
  auto out = Need::last_residual(request.model.cfg());
  out.after = ids;
  out.read.positions.clear();
  for (size_t t = 0; t < ids.size(); ++t) out.read.positions.push_back(static_cast<int64_t>(t));
  return out;
}

std::vector<torch::Tensor> last_residuals(const ReadoutInputs& inputs) {
  std::vector<torch::Tensor> out;
  for (const auto& values : inputs.needed) out.push_back(values.select(1, 0));
  return out;
}

std::string problem_of_tokens(const Value& value, const std::string& where) {
  return problem_of_list(value, where, [](const Value& one, const std::string& place) -> std::string {
    auto problem = problem_of_fields(
        one, place,
        {{"token", Kind::text}, {"id", Kind::whole}, {"log_prob", Kind::number}, {"rank", Kind::whole}});
    if (!problem.empty()) return problem;
    const auto& text = *one.find("token")->get_if<std::string>();
    const auto id = *one.find("id")->get_if<int64_t>(), rank = *one.find("rank")->get_if<int64_t>();
    const auto log_prob = one.find("log_prob")->number();
    if (rank < 1 && std::isfinite(log_prob))
      return concat("rank of '", text, "' must be 1 or more, got ", rank);
    if (id < 0) return concat("id of '", text, "' must be 0 or more, got ", id);
    if (log_prob > kRounding) return concat("log_prob of '", text, "' must be 0 or less, got ", log_prob);
    return "";
  });
}

}  // namespace introspect::experiments
