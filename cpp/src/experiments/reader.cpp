#include "experiments/reader.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include <ATen/ATen.h>

#include "ops/equal_rows.h"

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{48} << 20;

double at(const torch::Tensor& logits_V, int64_t id) {
  return logits_V.scalar_type() == torch::kFloat64
             ? logits_V.const_data_ptr<double>()[id]
             : static_cast<double>(logits_V.const_data_ptr<float>()[id]);
}

class Reader {
 public:
  Reader(const models::Model& model, const Design& design) : model_(model), design_(design) {}

  /// `logits_V` [V] at the read position, `log_total` the log of the sum of their exponentials.
  Reading read(const ReadRow& row, const torch::Tensor& logits_V, double log_total) {
    Reading out;
    out.log_odds = at(logits_V, design_.yes_id) - at(logits_V, design_.no_id);
    out.p_yes = std::exp(at(logits_V, design_.yes_id) - log_total);
    out.p_no = std::exp(at(logits_V, design_.no_id) - log_total);
    ReadoutInputs inputs{model_, {}, logits_V, log_total, !row.ask->is_control(), {}, {}};
    inputs.injected = injected(row);
    read(row, /*of_text=*/false, inputs, out);
    return out;
  }

  void read_text(const ReadRow& row, const std::string& text, Reading& out) {
    ReadoutInputs inputs{model_, {}, {}, 0.0, !row.ask->is_control(), {}, text};
    inputs.injected = injected(row);
    read(row, /*of_text=*/true, inputs, out);
  }

 private:
  static std::vector<int64_t> injected(const ReadRow& row) {
    std::vector<int64_t> out;
    for (const auto& [first, last] : row.injection ? reached(*row.scene, *row.injection) : row.scene->spans)
      for (int64_t t = first; t < last; ++t) out.push_back(t);
    return out;
  }

  void read(const ReadRow& row, bool of_text, ReadoutInputs& inputs, Reading& out) {
    static const std::vector<torch::Tensor> kNothing;
    const auto& reads = design_.reads(*row.ask);
    const auto& base = row.base ? row.base->values : kNothing;
    for (size_t i = 0; i < reads.active.size(); ++i) {
      const auto& prepared = reads.active[i]->prepared;
      if (prepared.reads_text != of_text) continue;
      inputs.needed.clear();
      for (const auto& source : reads.sources[i])
        inputs.needed.push_back(MergedNeeds::take(source, row.parts->values, base));
      inputs.unsteered_logits_V = prepared.compares && row.base
                                      ? unsteered_logits(*row.base, reads.unsteered_resid)
                                      : torch::Tensor();
      for (auto& [field, value] : prepared.read(inputs)) out.values[field] = std::move(value);
    }
  }

  /// [V] on the CPU. Readings share it: it is computed once.
  torch::Tensor unsteered_logits(const Parts& base, const MergedNeeds::Source& source) {
    auto& logits_V = logits_[&base];
    if (!logits_V.defined())
      logits_V = model_.readout(MergedNeeds::take(source, {}, base.values)[0][0]).to(torch::kCPU);
    return logits_V;
  }

  const models::Model& model_;
  const Design& design_;
  std::unordered_map<const Parts*, torch::Tensor> logits_;  // of unsteered readings
};

}  // namespace

std::vector<Reading> read_out(const models::Model& model, const Design& design,
                              const std::vector<ReadRow>& rows) {
  const auto element = model.dtype() == torch::kFloat64 ? sizeof(double) : sizeof(float);
  const auto n_at_once = static_cast<size_t>(
      std::clamp<int64_t>(kLogitBytes / (model.cfg().d_vocab * static_cast<int64_t>(element)), 1, 256));
  const ops::EqualRows equal_rows;
  Reader reader(model, design);
  std::vector<Reading> out;
  for (size_t first = 0; first < rows.size(); first += n_at_once) {
    std::vector<torch::Tensor> resids;
    for (size_t i = first; i < std::min(first + n_at_once, rows.size()); ++i)
      resids.push_back(rows[i].parts->values.front()[0][-1]);  // the first need: see reads_of
    const auto logits_NV = model.readout(torch::stack(resids)).to(torch::kCPU).contiguous();
    const auto log_totals = logits_NV.logsumexp({1}).to(torch::kFloat64);
    for (size_t i = 0; i < resids.size(); ++i) {
      const auto at = static_cast<int64_t>(i);
      out.push_back(reader.read(rows[first + i], logits_NV[at], log_totals[at].item<double>()));
    }
  }
  return out;
}

void read_text(const models::Model& model, const Design& design, const ReadRow& row, const std::string& text,
               Reading& reading) {
  Reader(model, design).read_text(row, text, reading);
}

}  // namespace introspect::experiments
