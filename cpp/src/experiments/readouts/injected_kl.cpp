// KL(injected || base) of the next token at the injected tokens, the mean over them in nats: the injection's dose. And how
// many tokens they are.

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/ops/logits.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{64} << 20;  // of one chunk of logits

struct Logits {
  torch::Tensor values_TV, total_T;
};

Logits logits_of(const models::Model& model, const torch::Tensor& resid_TLD) {
  const auto values_TV = model.readout(resid_TLD.select(1, 0)).to(torch::kCPU);
  return {values_TV, ops::log_total(values_TV)};
}

/// Logits of the unsteered run, which many injections are compared with. Those of one run are kept.
class Unsteered {
 public:
  /// At some of its tokens. Runs of more than `most` tokens are not kept.
  Logits at(const models::Model& model, const torch::Tensor& resid_TLD, const torch::Tensor& places,
            int64_t most) {
    if (resid_TLD.size(0) > most) return logits_of(model, resid_TLD.index_select(0, places));
    if (!resid_TLD_.defined() || !resid_TLD_.is_same(resid_TLD)) {
      logits_ = logits_of(model, resid_TLD);
      resid_TLD_ = resid_TLD;
    }
    return {logits_.values_TV.index_select(0, places), logits_.total_T.index_select(0, places)};
  }

 private:
  torch::Tensor resid_TLD_;
  Logits logits_;
};

std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!is_on(request)) return std::nullopt;
  const auto inject = request.protocol.inject;
  check<ConfigError>(
      inject != Inject::tokens && inject != Inject::model,
      "run_experiment: readout injected_kl compares the injected tokens with the same tokens unsteered; "
      "protocol '",
      request.protocol.name, "' injects by ", to_string(inject));
  PreparedReadout out;
  auto need = Need::injected_residuals(request.model.cfg());
  out.needs.push_back(need);
  need.is_unsteered = true;
  out.needs.push_back(need);
  out.own_question_only = true;
  out.fields = {{"injected_tokens"}};
  out.read = [unsteered = std::make_shared<Unsteered>()](const ReadoutInputs& inputs) {
    const auto n = static_cast<int64_t>(inputs.injected.size());
    Value::Fields fields{{"injected_tokens", n}};
    if (!inputs.needed[1].defined()) return fields;
    const auto steered_TLD = inputs.needed[0], base_TLD = inputs.needed[1];
    const auto places = torch::tensor(inputs.injected, torch::kInt64);
    const auto most = std::max<int64_t>(1, kLogitBytes / (4 * inputs.model.cfg().d_vocab));
    double sum = 0.0;
    for (int64_t first = 0; first < n; first += most) {
      const auto count = std::min(most, n - first);
      const auto base = unsteered->at(inputs.model, base_TLD, places.narrow(0, first, count), most);
      const auto steered_TV =
          inputs.model.readout(steered_TLD.narrow(0, first, count).select(1, 0)).to(torch::kCPU);
      sum += ops::kl_divergence(steered_TV, base.values_TV, base.total_T).sum().item<double>();
    }
    fields.emplace_back("injected_kl", sum / static_cast<double>(n));
    return fields;
  };
  return out;
}

std::string problem(const std::string& field, const Value& value) {
  if (auto what = problem_of_number(value, field); !what.empty()) return what;
  if (field == "injected_kl" && value.number() < -kRounding)
    return concat("injected_kl must be 0 or more, got ", value.number());
  if (field == "injected_tokens" && !(value.get_if<int64_t>() && value.number() > 0))
    return concat("injected_tokens must be a whole number above 0, got ", value.number());
  return "";
}

const bool registered = register_library_readout({
    .name = "injected_kl",
    .prepare = prepare,
    .fields = {"injected_tokens", "injected_kl"},
    .check = problem,
    .order = 75,
});

}  // namespace
}  // namespace introspect::experiments
