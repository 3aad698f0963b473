// The same reading of the residual after every block, through a lens: true is the logit lens, text the path of another one
// (analysis/lens.h). {"log_odds", "p_yes", "p_no" (summed over the spellings): [L], "log_probs": of each report token [L]}.

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>

#include "introspect/analysis/lens.h"
#include "introspect/core/check.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{48} << 20;  // of the logits that are there at once

Value::Fields read(const ReadoutInputs& inputs, const analysis::Lens& lens, const std::vector<int64_t>& yes,
                   const std::vector<int64_t>& no, const std::vector<int64_t>& report) {
  const auto& resid_LD = inputs.needed[0][0];
  Value::Numbers log_odds, p_yes, p_no;
  std::vector<Value::Numbers> of_tokens(report.size());
  const auto V = inputs.model.cfg().d_vocab, L = resid_LD.size(0);
  const int64_t n_at_once = std::clamp<int64_t>(kLogitBytes / (4 * V), 1, L);
  for (int64_t first = 0; first < L; first += n_at_once) {
    std::vector<torch::Tensor> translated;
    for (int64_t layer = first; layer < std::min(first + n_at_once, L); ++layer)
      translated.push_back(lens.translate(resid_LD[layer], layer));
    const auto logits_LV = inputs.model.readout(at::stack(translated)).to(torch::kCPU);
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

/// The lens that is asked for, whose every layer must be there.
analysis::Lens lens_of(const ReadoutRequest& request) {
  const auto* const path = request.parameter->get_if<std::string>();
  if (!path) return analysis::Lens::logit(request.model);
  auto lens = analysis::Lens::load(*path);
  lens.check_model(request.model);
  const auto layers = lens.layers();
  for (int64_t layer = 0; layer < request.model.cfg().n_layers; ++layer)
    check<ConfigError>(std::ranges::find(layers, layer) != layers.end(), "readout 'lens': ", *path,
                       " must read every layer, and does not read layer ", layer);
  return lens;
}

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!request.parameter || is_off(*request.parameter)) return std::nullopt;
  const auto lens = std::make_shared<const analysis::Lens>(lens_of(request));
  PreparedReadout out;
  out.needs = {Need::residuals()};
  out.n_logits = request.model.cfg().n_layers - 1;  // those after the last block are there
  out.fields = {{"lens"}};
  if (lens->kind() != analysis::LensKind::logit) {
    out.key = {{"lens", lens->hash()}};  // instead of the path
    out.settings = {{"lens", Value::Fields{{"kind", to_string(lens->kind())}, {"hash", lens->hash()}}}};
  }
  out.read = [lens, yes = request.yes_ids, no = request.no_ids,
              report = report_ids(request)](const ReadoutInputs& inputs) {
    return read(inputs, *lens, yes, no, inputs.is_own_question ? report : std::vector<int64_t>{});
  };
  return out;
}

std::string problem_of_lens(const Value& parameter) {
  const auto* const path = parameter.get_if<std::string>();
  if (parameter.get_if<bool>() || (path && !path->empty())) return "";
  return concat("must be true, false or the path of a lens, got ", parameter.to_json());
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
    .check_parameter = problem_of_lens,
    .prepare = prepare,
    .fields = {"lens"},
    .check = problem,
    .order = 50,
});

}  // namespace
}  // namespace introspect::experiments
