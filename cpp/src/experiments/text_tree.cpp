#include "experiments/text_tree.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

namespace introspect::experiments {
namespace {

constexpr int64_t kLogitBytes = int64_t{48} << 20;  // at once, in float64

}  // namespace

TextTree::TextTree(const std::vector<std::vector<int64_t>>& texts) : n_texts_(texts.size()) {
  std::map<std::vector<int64_t>, std::vector<Next>>
      beginnings;  // one comes right before those that go on from it
  for (size_t i = 0; i < texts.size(); ++i)
    for (size_t n = 1; n < texts[i].size(); ++n)
      beginnings[{texts[i].begin(), texts[i].begin() + static_cast<int64_t>(n)}].push_back({i, texts[i][n]});
  for (auto it = beginnings.begin(); it != beginnings.end(); ++it) {
    const auto& ids = it->first;
    rows_.push_back({paths_.size(), static_cast<int64_t>(ids.size()) - 1, it->second});
    const auto after = std::next(it);
    const bool goes_on = after != beginnings.end() && after->first.size() > ids.size() &&
                         std::equal(ids.begin(), ids.end(), after->first.begin());
    if (!goes_on) paths_.push_back(ids);
  }
}

std::vector<double> TextTree::rest_log_probs(const models::Model& model,
                                             const std::vector<torch::Tensor>& resid_TD) const {
  std::vector<double> out(n_texts_, 0.0);
  const auto at_once = static_cast<size_t>(std::clamp<int64_t>(
      kLogitBytes / (model.cfg().d_vocab * static_cast<int64_t>(sizeof(double))), 1, 256));
  for (size_t first = 0; first < rows_.size(); first += at_once) {
    const auto end = std::min(first + at_once, rows_.size());
    std::vector<torch::Tensor> resid_ND;
    for (size_t i = first; i < end; ++i) resid_ND.push_back(resid_TD.at(rows_[i].path)[rows_[i].position]);
    const auto logits_NV =
        model.readout(torch::stack(resid_ND)).to(torch::kCPU, torch::kFloat64).contiguous();
    const auto total_N = logits_NV.logsumexp({1});
    for (size_t i = first; i < end; ++i) {
      const auto* const logits = logits_NV[static_cast<int64_t>(i - first)].const_data_ptr<double>();
      const auto total = total_N.const_data_ptr<double>()[i - first];
      for (const auto& [text, id] : rows_[i].next) out[text] += logits[id] - total;
    }
  }
  return out;
}

}  // namespace introspect::experiments
