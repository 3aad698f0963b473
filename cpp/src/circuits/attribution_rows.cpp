#include "circuits/attribution_rows.h"

#include <algorithm>
#include <stdexcept>

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

RowTarget::Reads reads_of(FeatureSite site) {
  switch (site) {
    case FeatureSite::attention:
      return RowTarget::Reads::attention_out;
    case FeatureSite::mlp:
      return RowTarget::Reads::mlp_input;
    case FeatureSite::residual:
      return RowTarget::Reads::residual;
  }
  throw std::logic_error("circuits: a site that nothing reads");
}

RowMaker::RowMaker(const FrozenModel& frozen, const FeatureLayers& features)
    : frozen_(frozen), features_(features) {
  offsets_.push_back(0);
  for (const auto& layer : features.layers) {
    writes_once_ = writes_once_ && layer.writes.size() == 1;
    bounds_.push_back(layer.offsets.to(torch::kCPU).contiguous());
    offsets_.push_back(offsets_.back() + layer.ids.size(0));
  }
}

size_t RowMaker::layer_index(int64_t column) const {
  const auto after = std::upper_bound(offsets_.begin(), offsets_.end(), column);
  return static_cast<size_t>(after - offsets_.begin() - 1);
}

int64_t RowMaker::position_within(size_t index, int64_t column) const {
  const auto* bounds = bounds_[index].const_data_ptr<int64_t>();
  const auto* end = bounds + frozen_.n_tokens() + 1;
  return std::upper_bound(bounds, end, column - offsets_[index]) - bounds - 1;
}

int64_t RowMaker::position(int64_t column) const {
  return position_within(layer_index(column), column);
}

int64_t RowMaker::cell(int64_t column) const {
  const auto index = layer_index(column);
  return features_.layers[index].error_row * frozen_.n_tokens() + position_within(index, column);
}

RowMaker::Place RowMaker::place(int64_t column) const {
  const auto index = layer_index(column);
  const auto& layer = features_.layers[index];
  const int64_t entry = column - offsets_[index];
  return {static_cast<int64_t>(index), position_within(index, column), layer.ids[entry].item<int64_t>(),
          layer.activations[entry].item<double>()};
}

int64_t RowMaker::row_bytes(int64_t n_positions) const {
  const auto D = frozen_.embedded_TD().size(1), size = frozen_.embedded_TD().element_size();
  const auto& cfg = frozen_.model().cfg();
  // The gradient, what the heads mix of it twice, and its next value; and the row itself.
  return size * (n_positions * (2 * D + 3 * cfg.n_heads * cfg.d_head) + n_features() +
                 2 * features_.n_error_rows() * frozen_.n_tokens());
}

torch::Tensor RowMaker::written_mD(size_t index, size_t write, int64_t position) const {
  const auto* bounds = bounds_[index].const_data_ptr<int64_t>();
  const int64_t first = bounds[position], m = bounds[position + 1] - first;
  const auto& from = features_.layers[index];
  return from.writes[write].second.index_select(0, from.ids.narrow(0, first, m)) *
         from.activations.narrow(0, first, m).unsqueeze(1);
}

std::vector<RowMaker::Cell> RowMaker::seen(const RowTarget& target) const {
  // Sites lie at the depths of the targets that read there.
  const auto below = [&](const FeatureLayer& from) {
    if (frozen_.parallel() && target.reads == RowTarget::Reads::mlp_input && from.layer == target.layer)
      return false;
    return RowTarget{reads_of(from.site), from.layer, 0, {}, 0}.depth() < target.depth();
  };
  size_t begin = 0;
  for (size_t i = 0; i < features_.layers.size(); ++i)  // nothing passes an SAE of the stream
    if (features_.layers[i].site == FeatureSite::residual && writes_once_ && below(features_.layers[i]))
      begin = i;
  std::vector<Cell> out;
  for (size_t i = begin; i < features_.layers.size(); ++i) {
    const auto& from = features_.layers[i];
    if (!below(from)) continue;
    const auto* bounds = bounds_[i].const_data_ptr<int64_t>();
    for (int64_t p = 0; p <= target.position; ++p)
      if (bounds[p + 1] > bounds[p])
        out.push_back(
            {from.error_row * frozen_.n_tokens() + p, offsets_[i] + bounds[p], offsets_[i] + bounds[p + 1]});
  }
  return out;
}

Rows RowMaker::rows(const std::vector<RowTarget>& targets) {
  using Reads = RowTarget::Reads;
  const at::NoGradGuard no_grad;
  const int64_t R = static_cast<int64_t>(targets.size()), L = frozen_.n_layers(), T = frozen_.n_tokens();
  const auto options = frozen_.embedded_TD().options();
  const int64_t D = frozen_.embedded_TD().size(1);
  int64_t P = 1;  // positions that a target can see
  for (const auto& target : targets) P = std::max(P, target.position + 1);

  // A product sets its block; only where several layers add to one does it have to be 0 before.
  if (!buffer_.defined() || buffer_.size(0) < R) buffer_ = at::empty({R, n_features()}, options);
  Rows out{buffer_.narrow(0, 0, R), at::zeros({R, features_.n_error_rows() * T}, options),
           at::zeros({R, T}, options), at::zeros({R, L + 1}, options), at::zeros({R, L}, options)};
  if (!writes_once_) out.features_RN.zero_();
  for (int64_t r = 0; r < R; ++r)
    out.biases_RB[r][1 + targets[size_t(r)].layer] = targets[size_t(r)].constant;

  // The gradient at the stream of rows [done, n): those that are above it, less those that end at an SAE above it.
  auto g_PRD = at::zeros({P, 0, D}, options);
  int64_t done = 0, n = 0;
  const auto live = [&](const torch::Tensor& x) { return x.narrow(0, done, n - done); };
  const auto count = [&](int64_t layer, Reads reads) {
    int64_t more = 0;
    while (n + more < R && targets[size_t(n + more)].layer == layer &&
           targets[size_t(n + more)].reads == reads)
      ++more;
    return more;
  };
  const auto append = [&](const torch::Tensor& more_PRD) {
    g_PRD = at::cat({g_PRD, more_PRD}, 1);
    n += more_PRD.size(1);
  };
  const auto at_positions = [&](const torch::Tensor& g_RD, const torch::Tensor& positions_R) {
    auto x_PRD = at::zeros({P, g_RD.size(0), D}, options);
    return x_PRD.index_put_({positions_R, at::arange(g_RD.size(0), positions_R.options())}, g_RD);
  };
  /// What is written at a site of a layer: features, errors and a constant.
  const auto write = [&](FeatureSite site, int64_t layer, int64_t error_row, const torch::Tensor& error_TD,
                         const torch::Tensor& bias_D) {
    for (size_t i = 0; i < features_.layers.size(); ++i) {
      const auto& from = features_.layers[i];
      if (from.site != site) continue;
      for (size_t way = 0; way < from.writes.size(); ++way) {
        if (from.writes[way].first != layer) continue;
        const auto* bounds = bounds_[i].const_data_ptr<int64_t>();
        for (int64_t p = 0; p < P; ++p) {
          const int64_t first = bounds[p], m = bounds[p + 1] - first;
          if (m == 0) continue;
          auto block = live(out.features_RN).narrow(1, offsets_[i] + first, m);
          block.addmm_(g_PRD[p], written_mD(i, way, p).t(), writes_once_ ? 0 : 1);
        }
      }
    }
    live(out.errors_RE).narrow(1, error_row * T, P).copy_(dot_RP(g_PRD, error_TD.narrow(0, 0, P)));
    if (bias_D.defined()) live(out.biases_RB).select(1, 1 + layer).add_(at::matmul(g_PRD, bias_D).sum(0));
  };
  const auto write_split = [&](const Split& split) {
    const auto row = L + (&split - features_.splits.data());
    write(split.site, split.layer, row, split.error_TD, split.bias_D);
  };

  for (int64_t layer = L - 1; layer >= 0; --layer) {
    check_interrupt();
    const auto* stream = features_.split(FeatureSite::residual, layer);
    const auto* heads = features_.split(FeatureSite::attention, layer);
    if (const int64_t more = count(layer, Reads::stream_after))
      append(at_positions(directions_of(targets, n, more), positions_of(targets, n, more)));
    if (stream) {
      if (n > done) write_split(*stream);
      done = n;
      g_PRD = at::zeros({P, 0, D}, options);
    }
    if (const int64_t more = count(layer, Reads::residual))
      append(at_positions(directions_of(targets, n, more), positions_of(targets, n, more)));

    // What is written after the MLP; and what the skip reads.
    torch::Tensor skip_PRD;
    if (n > done) {
      const auto& injected_TD = frozen_.injected_TD(layer);
      if (injected_TD.defined())
        live(out.injections_RL).select(1, layer).copy_(dot_RP(g_PRD, injected_TD.narrow(0, 0, P)).sum(1));
      write(FeatureSite::mlp, layer, layer, features_.error_TD[size_t(layer)],
            features_.bias_D[size_t(layer)]);
      const auto& skip_DD = features_.skip_DD[size_t(layer)];
      if (skip_DD.defined())
        skip_PRD = frozen_.mlp_input_gradient(layer, features_.input, at::matmul(g_PRD, skip_DD));
      if (skip_PRD.defined() && !frozen_.parallel()) g_PRD = g_PRD + skip_PRD;
    }

    const auto mlp_gradient = [&](int64_t more) {
      return frozen_.mlp_input_gradient(layer, features_.input, directions_of(targets, n, more),
                                        positions_of(targets, n, more));
    };
    if (heads && !frozen_.parallel())  // what attention adds reaches the MLP through the SAE
      if (const int64_t more = count(layer, Reads::mlp_input))
        append(at_positions(mlp_gradient(more), positions_of(targets, n, more)));
    if (n > done) {
      if (heads) {
        write_split(*heads);
      } else {
        live(out.biases_RB)
            .select(1, 1 + layer)
            .add_(dot_RP(g_PRD, frozen_.attention_bias_TD(layer).narrow(0, 0, P)).sum(1));
        g_PRD = g_PRD + frozen_.attention_gradient(layer, g_PRD);
      }
      if (skip_PRD.defined() && frozen_.parallel()) g_PRD = g_PRD + skip_PRD;
    }
    const auto add_attention_bias = [&](const torch::Tensor& g_RD, const torch::Tensor& positions_R) {
      out.biases_RB.narrow(0, n, g_RD.size(0))
          .select(1, 1 + layer)
          .add_((g_RD * frozen_.attention_bias_TD(layer).index_select(0, positions_R)).sum(1));
    };
    if (const int64_t more = count(layer, Reads::mlp_input)) {
      const auto positions_R = positions_of(targets, n, more);
      const auto g_RD = mlp_gradient(more);
      auto more_PRD = at_positions(g_RD, positions_R);
      if (!frozen_.parallel()) {
        add_attention_bias(g_RD, positions_R);
        more_PRD = more_PRD + frozen_.attention_gradient(layer, g_RD, positions_R, P);
      }
      append(more_PRD);
    }
    if (const int64_t more = count(layer, Reads::attention_out)) {
      const auto positions_R = positions_of(targets, n, more);
      const auto g_RD = directions_of(targets, n, more);
      add_attention_bias(g_RD, positions_R);
      append(frozen_.attention_gradient(layer, g_RD, positions_R, P));
    }
  }
  if (n == done) return out;
  live(out.tokens_RT).narrow(1, 0, P).copy_(dot_RP(g_PRD, frozen_.embedded_TD().narrow(0, 0, P)));
  if (frozen_.positions_TD().defined())
    live(out.biases_RB).select(1, 0).add_(dot_RP(g_PRD, frozen_.positions_TD().narrow(0, 0, P)).sum(1));
  return out;
}

}  // namespace introspect::circuits
