#include "experiments/readout.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include <ATen/ATen.h>

#include "introspect/ops/logits.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{48} << 20;

std::vector<double> as_list(const torch::Tensor& values) {
  const auto here = values.to(torch::kCPU, torch::kFloat64).contiguous();
  return {here.const_data_ptr<double>(), here.const_data_ptr<double>() + here.numel()};
}

class Reader {
 public:
  Reader(const models::Model& model, const Plan& plan) : model_(model), plan_(plan) {}

  /// `logits_V` [V] at the read position, `log_total` the log of the sum of their exponentials.
  Reading read(const ReadRow& row, const torch::Tensor& logits_V, double log_total) {
    auto out = logits_V.scalar_type() == torch::kFloat64
                   ? read_tokens(*row.ask, logits_V.const_data_ptr<double>(), logits_V.numel(), log_total)
                   : read_tokens(*row.ask, logits_V.const_data_ptr<float>(), logits_V.numel(), log_total);
    if (plan_.yes_variants.size() + plan_.no_variants.size() > 2)
      out.set_log_odds = ops::set_log_odds(logits_V, plan_.yes_variants, plan_.no_variants).item<double>();
    if (plan_.readouts.divergence) out.entropy = ops::entropy(logits_V).item<double>();
    if (row.base_D.defined()) compare(logits_V, row.base_D, out);
    if (plan_.readouts.lens) out.lens = lens(row);
    if (row.attention_LH.defined())
      for (const auto& heads_H : row.attention_LH.unbind(0)) out.attention.push_back(as_list(heads_H));
    for (const auto& [name, directions] : plan_.directions) out.projections[name] = project(row, directions);
    for (size_t i = 0; i < plan_.continuations.size(); ++i)
      out.continuations.push_back(
          log_prob(plan_.continuations[i],
                   static_cast<double>(logits_V[plan_.continuations[i][0]].item<double>()) - log_total,
                   row.continuations[i]));
    return out;
  }

 private:
  template <typename T>
  Reading read_tokens(const Ask& ask, const T* logits, int64_t V, double log_total) const {
    const auto log_prob = [&](int64_t id) { return static_cast<double>(logits[id]) - log_total; };
    const auto token = [&](int64_t id) -> TokenReading {
      const auto above = std::count_if(logits, logits + V, [&](T other) { return other > logits[id]; });
      return {model_.tokenizer().decode(Ids{id}), id, log_prob(id), above + 1};
    };
    Reading out;
    out.log_odds = static_cast<double>(logits[plan_.yes_id]) - static_cast<double>(logits[plan_.no_id]);
    out.p_yes = std::exp(log_prob(plan_.yes_id));
    out.p_no = std::exp(log_prob(plan_.no_id));
    for (const auto id : ask.report_ids) out.tokens.push_back(token(id));
    for (const auto id : ask.answer_ids) out.answers.push_back(token(id));
    return out;
  }

  void compare(const torch::Tensor& logits_V, const torch::Tensor& base_D, Reading& out) {
    auto& base_V = base_logits_[base_D.unsafeGetTensorImpl()];
    if (!base_V.defined()) base_V = model_.readout(base_D).to(torch::kCPU);
    if (plan_.readouts.divergence) out.kl = ops::kl_divergence(logits_V, base_V).item<double>();
    for (const bool raised : {true, false}) {
      if (plan_.readouts.top_k == 0) break;
      const auto [changes, ids] = ops::most_changed(logits_V, base_V, plan_.readouts.top_k, raised);
      for (int64_t i = 0; i < ids.size(0); ++i) {
        const auto id = ids[i].item<int64_t>();
        (raised ? out.raised : out.lowered)
            .push_back({model_.tokenizer().decode(Ids{id}), id, changes[i].item<double>()});
      }
    }
  }

  Lens lens(const ReadRow& row) const {
    Lens out;
    out.log_probs.resize(row.ask->report_ids.size());
    const auto V = model_.cfg().d_vocab, L = row.resid_LD.size(0);
    const int64_t n_at_once = std::clamp<int64_t>(kLogitBytes / (4 * V), 1, L);
    for (int64_t first = 0; first < L; first += n_at_once) {
      const auto logits_LV =
          model_.readout(row.resid_LD.narrow(0, first, std::min(n_at_once, L - first))).to(torch::kCPU);
      const auto totals_L = logits_LV.logsumexp({1}).to(torch::kFloat64);
      const auto log_probs = [&](const Ids& ids) {
        return logits_LV.index_select(1, torch::tensor(ids, torch::kLong)).to(torch::kFloat64) -
               totals_L.unsqueeze(1);
      };
      const auto append = [](std::vector<double>& to, const torch::Tensor& values) {
        const auto list = as_list(values);
        to.insert(to.end(), list.begin(), list.end());
      };
      const auto yes_no = log_probs({plan_.yes_id, plan_.no_id});
      append(out.log_odds, yes_no.select(1, 0) - yes_no.select(1, 1));
      append(out.p_yes, log_probs(plan_.yes_variants).exp().sum(1));
      append(out.p_no, log_probs(plan_.no_variants).exp().sum(1));
      if (out.log_probs.empty()) continue;
      const auto tokens = log_probs(row.ask->report_ids);
      for (size_t i = 0; i < out.log_probs.size(); ++i)
        append(out.log_probs[i], tokens.select(1, static_cast<int64_t>(i)));
    }
    return out;
  }

  static std::map<int64_t, double> project(const ReadRow& row, const Directions& directions) {
    std::map<int64_t, double> out;
    for (const auto& [layer, direction] : directions)
      out[layer] = row.resid_LD[layer].to(torch::kFloat64).dot(direction.to(torch::kFloat64)).item<double>();
    return out;
  }

  double log_prob(const Ids& ids, double first, const torch::Tensor& resid_TD) const {
    double out = first;
    for (size_t t = 1; t < ids.size(); ++t) {
      const auto logits_V =
          model_.readout(resid_TD[static_cast<int64_t>(t) - 1]).to(torch::kCPU, torch::kFloat64);
      out += (logits_V[ids[t]] - logits_V.logsumexp({0})).item<double>();
    }
    return out;
  }

  const models::Model& model_;
  const Plan& plan_;
  std::unordered_map<const void*, torch::Tensor> base_logits_;  // by residual
};

}  // namespace

std::vector<Reading> read_out(const models::Model& model, const Plan& plan,
                              const std::vector<ReadRow>& rows) {
  const auto element = model.dtype() == torch::kFloat64 ? sizeof(double) : sizeof(float);
  const auto n_at_once = static_cast<size_t>(
      std::clamp<int64_t>(kLogitBytes / (model.cfg().d_vocab * static_cast<int64_t>(element)), 1, 256));
  Reader reader(model, plan);
  std::vector<Reading> out;
  for (size_t first = 0; first < rows.size(); first += n_at_once) {
    std::vector<torch::Tensor> resids;
    for (size_t i = first; i < std::min(first + n_at_once, rows.size()); ++i)
      resids.push_back(rows[i].resid_LD[-1]);
    const auto logits_NV = model.readout(torch::stack(resids)).to(torch::kCPU).contiguous();
    const auto log_totals = logits_NV.logsumexp({1}).to(torch::kFloat64);
    for (size_t i = 0; i < resids.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      out.push_back(reader.read(rows[first + i], logits_NV[at], log_totals[at].item<double>()));
    }
  }
  return out;
}

}  // namespace introspect::experiments
