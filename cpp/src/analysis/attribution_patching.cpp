#include "introspect/analysis/attribution_patching.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

#include <ATen/core/grad_mode.h>
#include <torch/autograd.h>

#include "introspect/core/check.h"

#include "analysis/frozen_norm.h"
#include "analysis/softmax_effects.h"
#include "core/on_device.h"

namespace introspect::analysis {
namespace {

using hooks::ActivationCache;
using hooks::Point;
using hooks::Site;
using torch::Tensor;
using Ids = std::vector<int64_t>;

struct NodeKind {
  std::string_view name;
  Point point;
  std::array<const char*, 3> axes;  // after the layer
  bool is_stream = false;           // no layer writes it: every layer after it can be dropped
  bool by_number = false;           // every number is a node: nothing is summed over
};

constexpr std::array kKinds = {
    NodeKind{"resid_pre", Point::kResidPre, {"position"}, true},
    NodeKind{"resid_mid", Point::kResidMid, {"position"}, true},
    NodeKind{"resid_post", Point::kResidPost, {"position"}, true},
    NodeKind{"attn_out", Point::kAttnOut, {"position"}},
    NodeKind{"mlp_out", Point::kMlpOut, {"position"}},
    NodeKind{"z", Point::kZ, {"position", "head"}},
    NodeKind{"q", Point::kQ, {"position", "head"}},
    NodeKind{"k", Point::kK, {"position", "head"}},
    NodeKind{"v", Point::kV, {"position", "head"}},
    NodeKind{"pattern", Point::kPattern, {"head", "dest"}},
    NodeKind{"pattern_dest_src", Point::kPattern, {"head", "dest", "src"}, false, true},
    NodeKind{"mlp_post", Point::kMlpPost, {"position", "neuron"}, false, true},
};

constexpr int64_t kMostBytes = int64_t{8} << 30;  // of values
constexpr int64_t kMostRows = 64;                 // of a batch: beyond this many nothing gets faster

NodeKind kind_of(const std::string& name) {
  const auto* found = std::ranges::find(kKinds, name, &NodeKind::name);
  std::string known;
  for (const auto& kind : kKinds) known += concat(known.empty() ? "" : ", ", kind.name);
  check<std::invalid_argument>(found != kKinds.end(), "attribution_patch: points are ", known, "; got '",
                               name, "'");
  return *found;
}

bool is_position(std::string_view axis) {
  return axis == "position" || axis == "dest" || axis == "src";
}

/// [B, ...] without its positions, where these are summed.
Tensor over_positions(const NodeKind& kind, Tensor x, bool sum) {
  if (!sum) return x;
  Ids axes;
  for (size_t a = 0; a < kind.axes.size() && kind.axes[a]; ++a)
    if (is_position(kind.axes[a])) axes.push_back(static_cast<int64_t>(a) + 1);
  return x.sum(axes);
}

/// Pairs of one length that are run together: the activations of both runs, those of `to` in a graph of gradients.
class Batch {
 public:
  Batch(const models::Model& model, const std::vector<PatchPair>& pairs, const Ids& rows,
        const std::vector<NodeKind>& kinds, const AttributionPatchingOptions& options)
      : model_(model),
        pairs_(pairs),
        rows_(rows),
        kinds_(kinds),
        options_(options),
        n_layers_(model.cfg().n_layers),
        T_(static_cast<int64_t>(pairs[static_cast<size_t>(rows[0])].to.tokens.size())) {
    for (const auto& kind : kinds) points_.push_back(kind.point);
    if (options.grad_drop) points_.insert(points_.end(), {Point::kResidPre, Point::kResidPost});
    if (corrects()) points_.insert(points_.end(), {Point::kPattern, scored(Point::kQ), scored(Point::kK)});
    std::ranges::sort(points_);
    points_.erase(std::unique(points_.begin(), points_.end()), points_.end());
    from_ = run(/*is_to=*/false);
    to_ = run(/*is_to=*/true);
    from_.metrics_B = metrics_of(from_);
    to_.metrics_B = metrics_of(to_);
  }

  /// float64 [B] of both runs.
  Tensor to_metrics() const { return to_.metrics_B.detach().to(torch::kCPU, torch::kFloat64); }
  Tensor from_metrics() const { return from_.metrics_B.to(torch::kCPU, torch::kFloat64); }

  /// Of each kind: float64 [B, layers, ...] on the CPU.
  std::vector<Tensor> attributions() {
    const auto gradients = gradients_of(to_.metrics_B.sum(), {}, n_layers_);
    std::vector<std::vector<Tensor>> values;  // [kind][layer]
    for (const auto& kind : kinds_) {
      auto& of_kind = values.emplace_back();
      for (int64_t layer = 0; layer < n_layers_; ++layer) of_kind.push_back(effect(kind, layer, gradients));
    }
    if (options_.grad_drop) values = drop_gradients(values, gradients);
    std::vector<Tensor> out;
    for (auto& of_kind : values) {
      for (auto& x : of_kind) x = x.to(torch::kCPU, torch::kFloat64);
      out.push_back(torch::stack(of_kind, 1));
    }
    return out;
  }

 private:
  struct RunOfBatch {
    std::shared_ptr<ActivationCache> cache = std::make_shared<ActivationCache>();
    Tensor metrics_B;
    std::vector<Tensor> resid_PD;  // of each row, at the positions of its metric
  };
  using Gradients = std::map<std::pair<int64_t, Point>, Tensor>;

  bool corrects() const {
    return options_.correct_qk && std::any_of(kinds_.begin(), kinds_.end(), [](const NodeKind& kind) {
             return kind.point == Point::kQ || kind.point == Point::kK;
           });
  }

  /// The queries or keys that scores are made of.
  Point scored(Point point) const {
    if (!hooks::HookPoints(models::hook_points(model_.cfg())).has({Point::kRotQ, 0})) return point;
    return point == Point::kQ ? Point::kRotQ : Point::kRotK;
  }

  const PatchPair& pair(size_t row) const { return pairs_[static_cast<size_t>(rows_[row])]; }

  /// Both runs go the same way, so that what is equal in them is so bit for bit; the graph of `from` ends with the run.
  RunOfBatch run(bool is_to) const {
    const at::AutoGradMode gradients(true);
    RunOfBatch out;
    std::vector<Tensor> tokens;
    for (size_t b = 0; b < rows_.size(); ++b)
      tokens.push_back(torch::tensor(is_to ? pair(b).to.tokens : pair(b).from.tokens, torch::kLong));
    const auto tokens_BT = torch::stack(tokens).to(model_.device());
    const auto positions_BT = torch::arange(T_, tokens_BT.options()).expand_as(tokens_BT);
    auto registry = model_.make_hooks();
    for (int64_t layer = 0; layer < n_layers_; ++layer)
      for (const auto point : points_) {
        const auto name = hooks::hook_name({point, layer});
        hooks::RecordOptions record;
        record.detach = !is_to;
        registry.record(name, out.cache, record);
        // A pattern that is only read is none that the output comes from.
        if (point == Point::kPattern)
          registry.observe(name, [](const Tensor&, Site) {}, {hooks::Direction::kBackward});
      }
    models::ForwardOptions pass;
    pass.hooks = &registry;
    pass.start_at_layer = 0;
    pass.stop_at_layer = n_layers_;
    const auto x_BTD = model_.embed(tokens_BT, positions_BT).detach().requires_grad_();
    const auto resid_BTD = model_.forward(x_BTD, pass);
    for (size_t b = 0; b < rows_.size(); ++b) {
      const auto reads = reads_of(pair(b).metric, T_, model_.cfg().d_vocab);
      const auto positions = on_device(reads.positions, resid_BTD.device());
      const auto resid_PD = resid_BTD[static_cast<int64_t>(b)].index_select(0, positions);
      out.resid_PD.push_back(is_to ? resid_PD : resid_PD.detach());
    }
    return out;
  }

  Tensor metrics_of(const RunOfBatch& run) const {
    const at::AutoGradMode gradients(true);
    std::vector<Tensor> out;
    for (size_t b = 0; b < rows_.size(); ++b) {
      const auto& metric = pair(b).metric;
      const auto reads = reads_of(metric, T_, model_.cfg().d_vocab);
      Tensor reference_PV;
      if (reads.needs_reference)
        reference_PV = model_.readout((options_.reference_is_to ? to_ : from_).resid_PD[b].detach());
      out.push_back(evaluate(metric, reads, model_.readout(run.resid_PD[b], reads.vocab_ids), reference_PV));
    }
    return torch::stack(out);
  }

  Tensor to_value(Point point, int64_t layer) const { return to_.cache->at(Site{point, layer}); }
  Tensor from_value(Point point, int64_t layer) const { return from_.cache->at(Site{point, layer}); }

  /// Gradients of an output at everything recorded in the layers before `end`.
  Gradients gradients_of(const Tensor& output, const Tensor& gradient, int64_t end) const {
    std::vector<std::pair<int64_t, Point>> sites;
    std::vector<Tensor> inputs;
    for (int64_t layer = 0; layer < end; ++layer)
      for (const auto point : points_) {
        sites.emplace_back(layer, point);
        inputs.push_back(to_value(point, layer));
      }
    std::vector<Tensor> weights;
    if (gradient.defined()) weights.push_back(gradient);
    const auto found = torch::autograd::grad({output}, inputs, weights, /*retain_graph=*/options_.grad_drop,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    Gradients out;
    for (size_t i = 0; i < sites.size(); ++i)
      out[sites[i]] = found[i].defined() ? found[i] : torch::zeros_like(inputs[i]);
    return out;
  }

  /// The estimate of one layer's nodes of a kind from gradients at its sites: [B, ...].
  Tensor effect(const NodeKind& kind, int64_t layer, const Gradients& gradients) const {
    const at::NoGradGuard no_grad;
    if (options_.correct_qk && (kind.point == Point::kQ || kind.point == Point::kK)) {
      const auto gradient_BHTS = gradients.at({layer, Point::kPattern});
      const auto values = kind.point == Point::kQ ? query_effects(softmax_of(layer), gradient_BHTS)
                                                  : key_effects(softmax_of(layer), gradient_BHTS);
      return over_positions(kind, values, options_.sum_positions);
    }
    const auto product = (wide(from_value(kind.point, layer)) - wide(to_value(kind.point, layer))) *
                         wide(gradients.at({layer, kind.point}));
    return over_positions(kind, kind.by_number ? product : product.sum(-1), options_.sum_positions);
  }

  SoftmaxInputs softmax_of(int64_t layer) const {
    const auto q = scored(Point::kQ), k = scored(Point::kK);
    const int64_t window = model_.cfg().is_local(layer) ? model_.cfg().window_size : 0;
    return {model_.block(layer), window, to_value(q, layer), from_value(q, layer), to_value(k, layer),
            from_value(k, layer)};
  }

  /// Without what flows back through a layer, the gradient before it is that after it, and nothing above it changes.
  std::vector<std::vector<Tensor>> drop_gradients(const std::vector<std::vector<Tensor>>& plain,
                                                  const Gradients& gradients) const {
    std::vector<std::vector<Tensor>> sums;
    for (size_t kind = 0; kind < kinds_.size(); ++kind) {
      auto& of_kind = sums.emplace_back();
      for (size_t layer = 0; layer < plain[kind].size(); ++layer)
        of_kind.push_back(plain[kind][layer].abs() * static_cast<double>(layer));
    }
    for (int64_t dropped = 0; dropped < n_layers_; ++dropped) {
      const auto after = gradients.at({dropped, Point::kResidPost});
      Gradients below;
      if (dropped > 0) below = gradients_of(to_value(Point::kResidPre, dropped), after, dropped);
      for (size_t i = 0; i < kinds_.size(); ++i) {
        const auto& kind = kinds_[i];
        auto& of_kind = sums[i];
        if (kind.is_stream)  // of the layer itself: the stream goes past it
          of_kind[static_cast<size_t>(dropped)] +=
              effect(kind, dropped, {{{dropped, kind.point}, after}}).abs();
        for (int64_t layer = 0; layer < dropped; ++layer)
          of_kind[static_cast<size_t>(layer)] += effect(kind, layer, below).abs();
      }
    }
    for (size_t i = 0; i < kinds_.size(); ++i)
      for (auto& x : sums[i]) x = x / static_cast<double>(kinds_[i].is_stream ? n_layers_ : n_layers_ - 1);
    return sums;
  }

  const models::Model& model_;
  const std::vector<PatchPair>& pairs_;
  const Ids& rows_;
  const std::vector<NodeKind>& kinds_;
  const AttributionPatchingOptions& options_;
  int64_t n_layers_, T_;
  std::vector<Point> points_;
  RunOfBatch from_, to_;
};

std::vector<NodeKind> check_request(const models::Model& model, const std::vector<PatchPair>& pairs,
                                    const AttributionPatchingOptions& options) {
  const auto& cfg = model.cfg();
  const auto points = models::hook_points(cfg);
  check<std::invalid_argument>(!pairs.empty() && !options.points.empty(),
                               "attribution_patch: pairs and points are needed, got ", pairs.size(), " and ",
                               options.points.size());
  check<std::invalid_argument>(!options.grad_drop || cfg.n_layers > 1,
                               "attribution_patch: GradDrop needs two layers at least: with one, nothing is "
                               "left when it is dropped");
  std::vector<NodeKind> out;
  const auto T = static_cast<int64_t>(pairs.front().to.tokens.size());
  for (const auto& name : options.points) {
    const auto& kind = out.emplace_back(kind_of(name));
    points.parse(hooks::hook_name({kind.point, 0}));
    int64_t numbers = static_cast<int64_t>(pairs.size()) * cfg.n_layers;
    for (const char* axis : kind.axes)
      if (axis)
        numbers *= is_position(axis)                    ? (options.sum_positions ? 1 : T)
                   : std::string_view(axis) == "neuron" ? cfg.d_mlp
                                                        : cfg.n_heads;
    check<std::invalid_argument>(numbers <= kMostBytes / 8, "attribution_patch: ", name, " of ", pairs.size(),
                                 " pairs of ", T, " tokens are ", numbers, " values, ", numbers * 8 >> 30,
                                 " GiB, and at most ", kMostBytes >> 30, " GiB are allowed: fewer pairs");
  }
  for (const auto& pair : pairs) {
    const auto n = static_cast<int64_t>(pair.to.tokens.size());
    check<std::invalid_argument>(pair.from.tokens.size() == pair.to.tokens.size(),
                                 "attribution_patch: runs of a pair must have as many tokens, got ", n,
                                 " and ", pair.from.tokens.size());
    check<std::invalid_argument>(n == T || options.sum_positions,
                                 "attribution_patch: pairs must have as many tokens, got ", T, " and ", n,
                                 ": sum the positions, or group the pairs");
    check<std::invalid_argument>(pair.to.interventions.empty() && pair.from.interventions.empty(),
                                 "attribution_patch: the runs take no interventions");
    reads_of(pair.metric, n, cfg.d_vocab);
    check_has_gradient("attribution_patch", pair.metric, "patch_grid, which is exact");
  }
  return out;
}

/// Pairs that are run together: of one length, as many as the budget has room for.
std::vector<Ids> batches_of(const models::Model& model, const std::vector<PatchPair>& pairs,
                            int64_t memory_budget) {
  const auto& cfg = model.cfg();
  std::map<size_t, Ids> by_length;
  for (size_t p = 0; p < pairs.size(); ++p)
    by_length[pairs[p].to.tokens.size()].push_back(static_cast<int64_t>(p));
  std::vector<Ids> out;
  for (const auto& [length, rows] : by_length) {
    const auto T = static_cast<int64_t>(length);
    const int64_t of_token =
        16 * cfg.d_model + 8 * cfg.d_mlp + 10 * cfg.n_heads * cfg.d_head + 6 * cfg.n_heads * T;
    const auto bytes = of_token * T * cfg.n_layers * static_cast<int64_t>(c10::elementSize(model.dtype()));
    const auto n = static_cast<size_t>(std::clamp<int64_t>(memory_budget / bytes, 1, kMostRows));
    for (size_t first = 0; first < rows.size(); first += n)
      out.emplace_back(rows.begin() + static_cast<std::ptrdiff_t>(first),
                       rows.begin() + static_cast<std::ptrdiff_t>(std::min(rows.size(), first + n)));
  }
  return out;
}

}  // namespace

AttributionPatching attribution_patching(const graph::ModelPtr& model, const std::vector<PatchPair>& pairs,
                                         const AttributionPatchingOptions& options) {
  const auto kinds = check_request(*model, pairs, options);
  const auto n_pairs = static_cast<int64_t>(pairs.size());
  AttributionPatching out;
  out.to = torch::zeros({n_pairs}, torch::kFloat64);
  out.from = torch::zeros({n_pairs}, torch::kFloat64);
  for (size_t i = 0; i < kinds.size(); ++i) {
    auto& at = out.points.emplace_back();
    at.point = options.points[i];
    at.axes = {"layer"};
    for (const char* axis : kinds[i].axes)
      if (axis && !(options.sum_positions && is_position(axis))) at.axes.emplace_back(axis);
  }
  int64_t done = 0;
  for (const auto& rows : batches_of(*model, pairs, options.memory_budget)) {
    report(options.progress, "attribution patching", done, n_pairs);
    Batch batch(*model, pairs, rows, kinds, options);
    const auto places = torch::tensor(rows, torch::kLong);
    out.to.index_copy_(0, places, batch.to_metrics());
    out.from.index_copy_(0, places, batch.from_metrics());
    const auto values = batch.attributions();
    for (size_t i = 0; i < kinds.size(); ++i) {
      auto& at = out.points[i].values;
      if (!at.defined()) {
        auto sizes = values[i].sizes().vec();
        sizes[0] = n_pairs;
        at = torch::zeros(sizes, torch::kFloat64);
      }
      at.index_copy_(0, places, values[i]);
    }
    done += static_cast<int64_t>(rows.size());
  }
  report(options.progress, "attribution patching", done, n_pairs);
  return out;
}

}  // namespace introspect::analysis
