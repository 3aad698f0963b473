// The same reading of the residual after every block, through the final norm and the unembedding (nostalgebraist 2020):
// {"log_odds", "p_yes", "p_no" (summed over the spellings): [L], "log_probs": of each report token [L]}.

#include <algorithm>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{48} << 20;  // of the logits that are there at once

Value::Fields read(const ReadoutInputs& inputs, const std::vector<int64_t>& yes,
                   const std::vector<int64_t>& no, const std::vector<int64_t>& report) {
  const auto& resid_LD = inputs.needed[0][0];
  Value::Numbers log_odds, p_yes, p_no;
  std::vector<Value::Numbers> of_tokens(report.size());
  const auto V = inputs.model.cfg().d_vocab, L = resid_LD.size(0);
  const int64_t n_at_once = std::clamp<int64_t>(kLogitBytes / (4 * V), 1, L);
  for (int64_t first = 0; first < L; first += n_at_once) {
    const auto logits_LV =
        inputs.model.readout(resid_LD.narrow(0, first, std::min(n_at_once, L - first))).to(torch::kCPU);
    const auto totals_L = logits_LV.logsumexp({1}).to(torch::kFloat64);
    const auto log_probs = [&](const std::vector<int64_t>& ids) {
      return logits_LV.index_select(1, torch::tensor(ids, torch::kLong)).to(torch::kFloat64) -
             totals_L.unsqueeze(1);
    };
    const auto append = [](Value::Numbers& to, const torch::Tensor& values) {
      const auto more = as_numbers(values);
      to.insert(to.end(), more.begin(), more.end());
    };
    const auto yes_no = log_probs({yes[0], no[0]});
    append(log_odds, yes_no.select(1, 0) - yes_no.select(1, 1));
    append(p_yes, log_probs(yes).exp().sum(1));
    append(p_no, log_probs(no).exp().sum(1));
    if (report.empty()) continue;
    const auto tokens = log_probs(report);
    for (size_t i = 0; i < report.size(); ++i)
      append(of_tokens[i], tokens.select(1, static_cast<int64_t>(i)));
  }
  return {{"lens", Value::Fields{{"log_odds", log_odds},
                                 {"p_yes", p_yes},
                                 {"p_no", p_no},
                                 {"log_probs", Value::List(of_tokens.begin(), of_tokens.end())}}}};
}

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!is_on(request)) return std::nullopt;
  PreparedReadout out;
  out.needs = {Need::residuals()};
  out.n_logits = request.model.cfg().n_layers - 1;  // those after the last block are there
  out.fields = {{"lens"}};
  out.read = [yes = request.yes_ids, no = request.no_ids,
              report = report_ids(request)](const ReadoutInputs& inputs) {
    return read(inputs, yes, no, inputs.is_own_question ? report : std::vector<int64_t>{});
  };
  return out;
}

std::string problem(const std::string& field, const Value& value) {
  if (auto what = problem_of_fields(value, field, {}); !what.empty()) return what;
  for (const std::string name : {"log_odds", "p_yes", "p_no", "log_probs"}) {
    const auto* const part = value.find(name);
    const auto place = field + "." + name;
    if (!part) return place + " is missing";
    auto what = name == "log_probs" ? problem_of_table(*part, place) : problem_of_numbers(*part, place);
    if (!what.empty()) return what;
  }
  for (const auto* name : {"p_yes", "p_no"})
    if (const auto* const layers = value.find(name)->get_if<Value::Numbers>())
      for (const double p : *layers)
        if (!is_probability(p)) return concat("the lens' probabilities must be from 0 to 1, got ", p);
  return "";
}

const bool registered = register_library_readout({
    .name = "lens",
    .prepare = prepare,
    .fields = {"lens"},
    .check = problem,
    .order = 50,
});

}  // namespace
}  // namespace introspect::experiments
