#include "analysis/first_block.h"

#include <algorithm>
#include <limits>
#include <map>

#include <ATen/core/grad_mode.h>

namespace introspect::analysis {
namespace {

using hooks::Intervention;
using Cell = std::vector<Intervention>;

constexpr int64_t kTokensOfPass = 4096;  // beyond this many nothing gets faster

int64_t first_layer(const Cell& cell) {
  int64_t out = std::numeric_limits<int64_t>::max();
  for (const auto& i : cell) out = std::min(out, i.values.begin()->first);
  return out;
}

/// True if what is changed at a position there shows in the block's output at later ones: by way of keys and values.
bool reaches_later(hooks::Point point) {
  using hooks::Point;
  switch (point) {
    case Point::kQInput:
    case Point::kQ:
    case Point::kQNormScale:
    case Point::kQNormNormalized:
    case Point::kRotQ:
      return false;
    default:
      return point < Point::kAttnScores;
  }
}

/// The only positions at which a cell changes the output of a block, ascending; none: from the first one on, all.
std::vector<int64_t> only_positions(const Cell& cell, int64_t layer) {
  std::vector<int64_t> out;
  for (const auto& i : cell) {
    if (!i.values.contains(layer)) continue;
    if (i.positions.empty() || reaches_later(i.point)) return {};
    out.insert(out.end(), i.positions.begin(), i.positions.end());
  }
  std::ranges::sort(out);
  out.erase(std::ranges::unique(out).begin(), out.end());
  return out;
}

/// The residual after a block [N, T, D] of cells that change it inside.
torch::Tensor run_block(const models::Model& model, int64_t layer, const torch::Tensor& resid_pre_TD,
                        const std::vector<const Cell*>& cells) {
  std::map<hooks::Point, std::vector<std::pair<int64_t, const Intervention*>>> by_point;
  for (size_t row = 0; row < cells.size(); ++row)
    for (const auto& i : *cells[row])
      if (i.values.contains(layer)) by_point[i.point].emplace_back(static_cast<int64_t>(row), &i);
  auto registry = model.make_hooks();
  for (const auto& [point, changes] : by_point)
    registry.add(hooks::hook_name({point, layer}), [&](const torch::Tensor& x, hooks::Site) {
      for (const auto& [row, intervention] : changes) {
        auto own = x.narrow(0, row, 1);
        own.copy_(hooks::apply(*intervention, layer, own, /*offset=*/0));
      }
      return std::optional<torch::Tensor>{};
    });
  models::ForwardOptions pass;
  pass.hooks = &registry;
  pass.start_at_layer = layer;
  pass.stop_at_layer = layer + 1;
  const auto n = static_cast<int64_t>(cells.size());
  const auto x_TD = resid_pre_TD.to(model.device(), model.dtype());
  return model.forward(x_TD.unsqueeze(0).repeat({n, 1, 1}), pass).to(torch::kCPU);
}

/// What is left of a cell above a block after which the residual is `resid_TD`.
Cell above(const Cell& cell, int64_t layer, const torch::Tensor& resid_TD) {
  Intervention changed;
  changed.op = "replace";
  changed.point = hooks::Point::kResidPost;
  changed.positions = only_positions(cell, layer);
  changed.values[layer] =
      changed.positions.size() == 1 ? resid_TD[changed.positions[0]].clone() : resid_TD.unsqueeze(0).clone();
  changed.first_position = std::numeric_limits<int64_t>::max();
  Cell out;
  for (auto i : cell) {
    if (i.values.erase(layer) > 0) {
      auto position = i.first_position;
      if (!i.positions.empty()) position = *std::ranges::min_element(i.positions);
      changed.first_position = std::min(changed.first_position, position);
    }
    if (!i.values.empty()) out.push_back(std::move(i));
  }
  if (!changed.positions.empty()) changed.first_position = 0;
  out.push_back(std::move(changed));
  return out;
}

}  // namespace

AfterFirstBlock run_first_blocks(const models::Model& model, const torch::Tensor& resid_pre_LTD,
                                 const std::vector<Cell>& cells, int64_t memory_budget) {
  const at::NoGradGuard no_grad;
  const auto& cfg = model.cfg();
  const int64_t T = resid_pre_LTD.size(1);
  const int64_t of_token =
      (6 * cfg.d_model + 4 * cfg.d_mlp + 6 * cfg.n_heads * cfg.d_head + cfg.n_heads * T) * 8;
  const auto of_pass =
      static_cast<size_t>(std::max<int64_t>(1, std::min(kTokensOfPass, memory_budget / 4 / of_token) / T));

  std::map<std::pair<int64_t, int64_t>, std::vector<size_t>> by_size;  // layer, positions that are run
  for (size_t c = 0; c < cells.size(); ++c) {
    const int64_t layer = first_layer(cells[c]);
    const auto only = only_positions(cells[c], layer);
    by_size[{layer, only.empty() ? T : only.back() + 1}].push_back(c);
  }
  AfterFirstBlock out;
  out.cells.resize(cells.size());
  for (const auto& [size, members] : by_size) {
    const auto [layer, n_rows] = size;
    for (size_t first = 0; first < members.size(); first += of_pass) {
      const auto n = std::min(of_pass, members.size() - first);
      std::vector<const Cell*> some;
      for (size_t i = 0; i < n; ++i) some.push_back(&cells[members[first + i]]);
      const auto resid_NTD = run_block(model, layer, resid_pre_LTD[layer].narrow(0, 0, n_rows), some);
      for (size_t i = 0; i < n; ++i)
        out.cells[members[first + i]] = above(*some[i], layer, resid_NTD[static_cast<int64_t>(i)]);
      out.token_layers += static_cast<int64_t>(n) * n_rows;
    }
  }
  return out;
}

}  // namespace introspect::analysis
