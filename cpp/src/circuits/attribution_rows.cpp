#include "circuits/attribution_rows.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "introspect/core/interrupt.h"

namespace introspect::circuits {

namespace {

torch::Tensor positions_of(const std::vector<RowTarget>& targets, int64_t first, int64_t n) {
  auto out = at::empty({n}, at::kLong);
  for (int64_t i = 0; i < n; ++i) out[i] = targets[size_t(first + i)].position;
  return out;
}

torch::Tensor directions_of(const std::vector<RowTarget>& targets, int64_t first, int64_t n) {
  std::vector<torch::Tensor> rows;
  for (int64_t i = 0; i < n; ++i) rows.push_back(targets[size_t(first + i)].direction_D);
  return at::stack(rows);
}

/// g [P, R, D] . x [P, D] -> [R, P].
torch::Tensor dot_RP(const torch::Tensor& g_PRD, const torch::Tensor& x_PD) {
  return at::bmm(g_PRD, x_PD.unsqueeze(2)).squeeze(2).t();
}

}  // namespace

RowMaker::RowMaker(const FrozenModel& frozen, const FeatureLayers& features)
    : frozen_(frozen), features_(features) {
  const int64_t T = frozen.n_tokens();
  std::vector<torch::Tensor> cells;
  offsets_.push_back(0);
  for (const auto& layer : features.layers) {
    writes_once_ = writes_once_ && layer.writes.size() == 1;
    bounds_.push_back(layer.offsets.to(torch::kCPU).contiguous());
    offsets_.push_back(offsets_.back() + layer.ids.size(0));
    const auto counts = bounds_.back().slice(0, 1) - bounds_.back().slice(0, 0, -1);
    cells.push_back(at::repeat_interleave(at::arange(T, counts.options()), counts) + layer.layer * T);
  }
  cells_ = cells.empty() ? at::empty({0}, at::kLong) : at::cat(cells);
}

RowMaker::Place RowMaker::place(int64_t column) const {
  const auto after = std::upper_bound(offsets_.begin(), offsets_.end(), column);
  const auto index = static_cast<size_t>(after - offsets_.begin() - 1);
  const auto& layer = features_.layers[index];
  const int64_t entry = column - offsets_[index];
  return {static_cast<int64_t>(index), cells_[column].item<int64_t>() - layer.layer * frozen_.n_tokens(),
          layer.ids[entry].item<int64_t>(), layer.activations[entry].item<double>()};
}

int64_t RowMaker::row_bytes(int64_t n_positions) const {
  const auto D = frozen_.embedded_TD().size(1), size = frozen_.embedded_TD().element_size();
  const auto& cfg = frozen_.model().cfg();
  // The gradient, what the heads mix of it twice, and its next value; and the row itself.
  return size * (n_positions * (2 * D + 3 * cfg.n_heads * cfg.d_head) + n_features() +
                 2 * frozen_.n_layers() * frozen_.n_tokens());
}

torch::Tensor RowMaker::written_mD(size_t index, size_t write, int64_t position) const {
  const auto* bounds = bounds_[index].const_data_ptr<int64_t>();
  const int64_t first = bounds[position], m = bounds[position + 1] - first;
  if (!gathered_.empty()) return gathered_[index][write].narrow(0, first, m);
  const auto& from = features_.layers[index];
  return from.writes[write].second.index_select(0, from.ids.narrow(0, first, m)) *
         from.activations.narrow(0, first, m).unsqueeze(1);
}

void RowMaker::gather(int64_t memory) {
  int64_t bytes = 0;
  for (const auto& layer : features_.layers)
    for (const auto& [to, W_dec_FD] : layer.writes)
      bytes += layer.ids.size(0) * W_dec_FD.size(1) * static_cast<int64_t>(W_dec_FD.element_size());
  if (bytes > memory) return;
  for (const auto& layer : features_.layers) {
    auto& ways = gathered_.emplace_back();
    for (const auto& [to, W_dec_FD] : layer.writes)
      ways.push_back(W_dec_FD.index_select(0, layer.ids).mul_(layer.activations.unsqueeze(1)));
  }
}

std::vector<RowMaker::Cell> RowMaker::seen(const RowTarget& target) const {
  std::vector<Cell> out;
  for (size_t i = 0; i < features_.layers.size(); ++i) {
    const int64_t layer = features_.layers[i].layer;
    if (layer > target.layer || (layer == target.layer && target.reads == RowTarget::Reads::mlp_input)) break;
    const auto* bounds = bounds_[i].const_data_ptr<int64_t>();
    for (int64_t p = 0; p <= target.position; ++p)
      if (bounds[p + 1] > bounds[p])
        out.push_back({layer * frozen_.n_tokens() + p, offsets_[i] + bounds[p], offsets_[i] + bounds[p + 1]});
  }
  return out;
}

Rows RowMaker::rows(const std::vector<RowTarget>& targets) {
  const at::NoGradGuard no_grad;
  const int64_t R = static_cast<int64_t>(targets.size()), L = frozen_.n_layers(), T = frozen_.n_tokens();
  const auto options = frozen_.embedded_TD().options();
  const int64_t D = frozen_.embedded_TD().size(1);
  int64_t P = 1;  // positions that a target can see
  for (const auto& target : targets) P = std::max(P, target.position + 1);

  // A product sets its block; only where several layers add to one does it have to be 0 before.
  if (!buffer_.defined() || buffer_.size(0) < R) buffer_ = at::empty({R, n_features()}, options);
  Rows out{buffer_.narrow(0, 0, R), at::zeros({R, L * T}, options), at::zeros({R, T}, options),
           at::zeros({R, L + 1}, options), at::zeros({R, L}, options)};
  if (!writes_once_) out.features_RN.zero_();
  for (int64_t r = 0; r < R; ++r)
    out.biases_RB[r][1 + targets[size_t(r)].layer] = targets[size_t(r)].constant;

  auto g_PRD =
      at::zeros({P, 0, D}, options);  // at the stream after the block, of the targets that are above it
  int64_t n = 0;                      // of them
  const auto count = [&](int64_t layer, RowTarget::Reads reads) {
    int64_t more = 0;
    while (n + more < R && targets[size_t(n + more)].layer == layer &&
           targets[size_t(n + more)].reads == reads)
      ++more;
    return more;
  };
  const auto append = [&](const torch::Tensor& more_PRD) { g_PRD = at::cat({g_PRD, more_PRD}, 1); };
  const auto at_positions = [&](const torch::Tensor& g_RD, const torch::Tensor& positions_R) {
    auto x_PRD = at::zeros({P, g_RD.size(0), D}, options);
    return x_PRD.index_put_({positions_R, at::arange(g_RD.size(0), positions_R.options())}, g_RD);
  };

  for (int64_t layer = L - 1; layer >= 0; --layer) {
    check_interrupt();
    if (const int64_t more = count(layer, RowTarget::Reads::stream_after)) {
      append(at_positions(directions_of(targets, n, more), positions_of(targets, n, more)));
      n += more;
    }

    // What is written after the MLP: features, errors, constants; and what the skip reads.
    torch::Tensor skip_PRD;
    if (n > 0) {
      for (size_t i = 0; i < features_.layers.size(); ++i) {
        const auto& from = features_.layers[i];
        for (size_t write = 0; write < from.writes.size(); ++write) {
          if (from.writes[write].first != layer) continue;
          const auto* bounds = bounds_[i].const_data_ptr<int64_t>();
          for (int64_t p = 0; p < P; ++p) {
            const int64_t first = bounds[p], m = bounds[p + 1] - first;
            if (m == 0) continue;
            auto block = out.features_RN.narrow(0, 0, n).narrow(1, offsets_[i] + first, m);
            block.addmm_(g_PRD[p], written_mD(i, write, p).t(), writes_once_ ? 0 : 1);
          }
        }
      }
      out.errors_RE.narrow(0, 0, n)
          .narrow(1, layer * T, P)
          .copy_(dot_RP(g_PRD, features_.error_TD[size_t(layer)].narrow(0, 0, P)));
      const auto& injected_TD = frozen_.injected_TD(layer);
      if (injected_TD.defined())
        out.injections_RL.narrow(0, 0, n).select(1, layer).copy_(
            dot_RP(g_PRD, injected_TD.narrow(0, 0, P)).sum(1));
      const auto& bias_D = features_.bias_D[size_t(layer)];
      if (bias_D.defined())
        out.biases_RB.narrow(0, 0, n).select(1, 1 + layer).add_(at::matmul(g_PRD, bias_D).sum(0));
      const auto& skip_DD = features_.skip_DD[size_t(layer)];
      if (skip_DD.defined())
        skip_PRD = frozen_.mlp_input_gradient(layer, features_.input, at::matmul(g_PRD, skip_DD));
      if (skip_PRD.defined() && !frozen_.parallel()) g_PRD = g_PRD + skip_PRD;

      out.biases_RB.narrow(0, 0, n)
          .select(1, 1 + layer)
          .add_(dot_RP(g_PRD, frozen_.attention_bias_TD(layer).narrow(0, 0, P)).sum(1));
      g_PRD = g_PRD + frozen_.attention_gradient(layer, g_PRD);
      if (skip_PRD.defined() && frozen_.parallel()) g_PRD = g_PRD + skip_PRD;
    }

    if (const int64_t more = count(layer, RowTarget::Reads::mlp_input)) {
      const auto positions_R = positions_of(targets, n, more);
      const auto g_RD =
          frozen_.mlp_input_gradient(layer, features_.input, directions_of(targets, n, more), positions_R);
      auto more_PRD = at_positions(g_RD, positions_R);
      if (!frozen_.parallel()) {
        out.biases_RB.narrow(0, n, more)
            .select(1, 1 + layer)
            .add_((g_RD * frozen_.attention_bias_TD(layer).index_select(0, positions_R)).sum(1));
        more_PRD = more_PRD + frozen_.attention_gradient(layer, g_RD, positions_R, P);
      }
      append(more_PRD);
      n += more;
    }
  }
  out.tokens_RT.narrow(1, 0, P).copy_(dot_RP(g_PRD, frozen_.embedded_TD().narrow(0, 0, P)));
  if (frozen_.positions_TD().defined())
    out.biases_RB.select(1, 0).add_(dot_RP(g_PRD, frozen_.positions_TD().narrow(0, 0, P)).sum(1));
  return out;
}

}  // namespace introspect::circuits
