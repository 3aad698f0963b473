#include "introspect/analysis/patching.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "analysis/first_block.h"
#include "introspect/core/check.h"

namespace introspect::analysis {
namespace {

using hooks::Intervention;
using hooks::Point;
using Ids = std::vector<int64_t>;
using Cells = std::vector<std::vector<Intervention>>;

constexpr int64_t kTokensOfGraph =
    200'000;  // of one graph's segments: some hundred bytes each while it is planned
constexpr int64_t kLogitsAtOnce = 1 << 26;  // numbers of one readout: 256 MiB

Ids range(int64_t n) {
  Ids out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), int64_t{0});
  return out;
}

void check_within(const char* what, const Ids& given, int64_t n) {
  for (const int64_t one : given)
    check<std::out_of_range>(one >= 0 && one < n, "patch_grid: ", what, " are 0 to ", n - 1, ", got ", one);
}

bool is_pattern(Point point) {
  return hooks::position_axis(point) == 2;
}

std::vector<Place> all_places(int64_t n) {
  std::vector<Place> out;
  for (int64_t p = 0; p < n; ++p) out.push_back({{p}, {p}});
  return out;
}

/// Builds the cells of one grid: activations are [layers, T, (heads,) W].
class CellBuilder {
 public:
  CellBuilder(const PatchAxes& axes, const std::vector<Place>& places, const torch::Tensor& to,
              const torch::Tensor& from)
      : axes_(axes),
        places_(places),
        to_(to),
        from_(from),
        has_heads_(hooks::head_axis(axes.point).has_value()) {
    const int64_t dims = has_heads_ ? 4 : 3;
    check<ShapeError>(to.dim() == dims && from.dim() == dims && to.size(0) == from.size(0) &&
                          to.size(-1) == from.size(-1) && (!has_heads_ || to.size(2) == from.size(2)),
                      "patch_grid: activations of both runs must be [layers, T, ",
                      has_heads_ ? "heads, " : "", "W], got ", to.sizes(), " and ", from.sizes());
    check<std::invalid_argument>(has_heads_ || (!axes.by_head && axes.heads.empty()),
                                 "patch_grid: ", hooks::point_name(axes.point), " has no heads");
    check<std::invalid_argument>(!axes.by_key || (is_pattern(axes.point) && axes.by_position && axes.by_head),
                                 "patch_grid: keys are an axis of patterns, beside positions and heads, got ",
                                 hooks::point_name(axes.point));
    check<std::invalid_argument>(axes.window >= 1, "patch_grid: the window must be at least 1 layer, got ",
                                 axes.window);
    check_within("layers", axes.layers, to.size(0));
    if (has_heads_) check_within("heads", axes.heads, to.size(2));
    for (const auto& place : places) {
      check<std::invalid_argument>(!place.to.empty() && place.to.size() == place.from.size(),
                                   "patch_grid: a place needs as many positions in both runs, got ",
                                   place.to.size(), " and ", place.from.size());
      check_within("positions", place.to, to.size(1));
      check_within("positions", place.from, from.size(1));
    }
  }

  Cells build() const {
    const auto layers = axes_.layers.empty() ? range(to_.size(0)) : axes_.layers;
    std::vector<Place> places = places_;
    if (!axes_.by_position) places = {joined(places_)};
    Ids heads = {-1};
    if (axes_.by_head) heads = axes_.heads.empty() ? range(to_.size(2)) : axes_.heads;
    const int64_t n_keys = axes_.by_key ? to_.size(-1) : 1;
    Cells out;
    for (const int64_t layer : layers)
      for (const auto& place : places)
        for (const int64_t head : heads)
          for (int64_t key = 0; key < n_keys; ++key)
            out.push_back(cell(layer, place, head, axes_.by_key ? key : -1));
    return out;
  }

 private:
  static Place joined(const std::vector<Place>& places) {
    Place out;
    for (const auto& place : places) {
      out.to.insert(out.to.end(), place.to.begin(), place.to.end());
      out.from.insert(out.from.end(), place.from.begin(), place.from.end());
    }
    return out;
  }

  std::vector<Intervention> cell(int64_t layer, const Place& place, int64_t head, int64_t key) const {
    Intervention patch;
    patch.op = "replace";
    patch.point = axes_.point;
    patch.positions = place.to;
    if (head >= 0)
      patch.heads = {head};
    else if (!axes_.heads.empty())
      patch.heads = axes_.heads;
    bool changes = false;
    const int64_t first = std::max<int64_t>(0, layer - axes_.window / 2);
    const int64_t last = std::min(to_.size(0), layer + axes_.window - axes_.window / 2);
    for (int64_t l = first; l < last; ++l) {
      auto here = selected(to_[l], place.to, patch.heads),
           other = selected(from_[l], place.from, patch.heads);
      if (key >= 0) {  // the row as it is, but for one weight
        auto row = here.clone();
        row.select(-1, key).copy_(other.select(-1, key));
        other = row;
      }
      changes |= !torch::equal(here, other);
      patch.values[l] = operand(other, place.to);
    }
    if (!changes) return {};
    return {patch};
  }

  /// [positions, (heads,) W]
  static torch::Tensor selected(const torch::Tensor& x, const Ids& positions, const Ids& heads) {
    auto out = positions.size() == 1 ? x.narrow(0, positions[0], 1)
                                     : x.index_select(0, torch::tensor(positions, torch::kLong));
    if (heads.size() == 1) return out.narrow(1, heads[0], 1);
    return heads.empty() ? out : out.index_select(1, torch::tensor(heads, torch::kLong));
  }

  /// As hooks::Intervention wants it: of one position [(heads,) W], of several [1, P, (heads,) W] from the first one on.
  torch::Tensor operand(const torch::Tensor& x, const Ids& positions) const {
    if (positions.size() == 1) return x[0].clone();
    auto sizes = x.sizes().vec();
    sizes[0] = *std::ranges::max_element(positions) + 1;
    auto out = torch::zeros(sizes, x.options()).index_copy(0, torch::tensor(positions, torch::kLong), x);
    if (is_pattern(axes_.point)) out = out.transpose(0, 1);
    return out.unsqueeze(0).contiguous();
  }

  const PatchAxes& axes_;
  const std::vector<Place>& places_;
  const torch::Tensor &to_, &from_;
  bool has_heads_;
};

graph::Read last_residual(const models::Config& cfg, const Ids& positions) {
  graph::Read out;
  out.positions = positions;
  out.layers = {cfg.n_layers - 1};
  return out;
}

/// True if all that a cell changes in the first block that it changes is inside that block.
bool starts_inside_block(const std::vector<Intervention>& cell) {
  int64_t first = std::numeric_limits<int64_t>::max();
  for (const auto& i : cell) first = std::min(first, i.values.begin()->first);
  return !cell.empty() && std::ranges::all_of(cell, [&](const Intervention& i) {
    const bool inside = static_cast<int>(i.point) < hooks::kBlockPoints && i.point != Point::kResidPre &&
                        i.point != Point::kResidPost;
    return inside || !i.values.contains(first);
  });
}

/// The cells with the first block that each changes inside run already, many at a time: the graph would run it for each
/// cell by itself. `token_layers` grows by what that took.
Cells after_first_blocks(const graph::ModelPtr& model, const Run& run, Cells cells, int64_t memory_budget,
                         int64_t& token_layers) {
  const auto is_early = [](const Intervention& i) { return i.point == Point::kEmbed; };
  if (!std::ranges::all_of(run.interventions, is_early)) return cells;
  std::vector<size_t> changed;
  Cells those;
  for (size_t c = 0; c < cells.size(); ++c)
    if (starts_inside_block(cells[c])) {
      changed.push_back(c);
      those.push_back(std::move(cells[c]));
    }
  if (those.empty()) return cells;
  const auto resid_pre_LTD = activations_at(model, {run}, Point::kResidPre).front();
  auto after = run_first_blocks(*model, resid_pre_LTD, those, memory_budget);
  for (size_t i = 0; i < changed.size(); ++i) cells[changed[i]] = std::move(after.cells[i]);
  token_layers += after.token_layers;
  return cells;
}

/// Metrics of cells from their residuals, some at a time.
class CellMetrics {
 public:
  CellMetrics(const models::Model& model, const Metric& metric, const MetricReads& reads,
              const torch::Tensor& reference_PV, torch::Tensor out)
      : model_(model), metric_(metric), reads_(reads), reference_PV_(reference_PV), out_(std::move(out)) {}

  void operator()(const Ids& cells, const torch::Tensor& resid_NPD) {
    const int64_t width = reads_.vocab_ids.defined() ? reads_.vocab_ids.size(0) : model_.cfg().d_vocab;
    const int64_t step = std::max<int64_t>(1, kLogitsAtOnce / (resid_NPD.size(1) * width));
    for (int64_t first = 0; first < resid_NPD.size(0); first += step) {
      const int64_t n = std::min(step, resid_NPD.size(0) - first);
      const auto logits = model_.readout(resid_NPD.narrow(0, first, n).to(model_.device()), reads_.vocab_ids);
      const auto values = evaluate(metric_, reads_, logits, reference_PV_).to(torch::kCPU, torch::kFloat64);
      const auto places = torch::tensor(Ids(cells.begin() + first, cells.begin() + first + n), torch::kLong);
      out_.index_copy_(0, places, values);
    }
  }

 private:
  const models::Model& model_;
  const Metric& metric_;
  const MetricReads& reads_;
  torch::Tensor reference_PV_, out_;
};

std::vector<Place> places_of(const PatchPair& pair) {
  if (!pair.places.empty()) return pair.places;
  check<std::invalid_argument>(pair.to.tokens.size() == pair.from.tokens.size(),
                               "patch_grid: runs of a pair must have as many tokens, or places, got ",
                               pair.to.tokens.size(), " and ", pair.from.tokens.size());
  return all_places(static_cast<int64_t>(pair.to.tokens.size()));
}

torch::Tensor patched_in(const PatchOptions& options, const torch::Tensor& from) {
  switch (options.with) {
    case PatchWith::run:
      return from;
    case PatchWith::zero:
      return torch::zeros_like(from);
    case PatchWith::mean: {
      const auto mean = options.mean.defined() ? options.mean.unsqueeze(1).to(from.options())
                                               : from.mean(1, /*keepdim=*/true);
      check<ShapeError>(
          mean.dim() == from.dim() && mean.size(0) == from.size(0) && mean.size(-1) == from.size(-1),
          "patch_grid: the mean must be ", from.select(1, 0).sizes(), ", got ", mean.squeeze(1).sizes());
      return mean.expand_as(from);
    }
  }
  return {};
}

}  // namespace

std::vector<torch::Tensor> activations_at(const graph::ModelPtr& model, const std::vector<Run>& runs,
                                          Point point, const Ids& layers) {
  graph::Graph graph;
  std::vector<graph::ReadId> ids;
  for (const auto& run : runs) {
    graph::Read read;
    read.point = point;
    read.positions = range(static_cast<int64_t>(run.tokens.size()));
    read.layers = layers;
    if (is_pattern(point)) read.what = graph::Read::What::attention;
    ids.push_back(graph.read(graph.segment(model, run.tokens, {}, run.interventions), read));
  }
  const auto captured = graph.run();
  std::vector<torch::Tensor> out;
  for (const auto id : ids)
    out.push_back(captured[static_cast<size_t>(id)].values.transpose(0, 1).contiguous());
  return out;
}

std::vector<std::vector<Intervention>> patch_cells(const PatchAxes& axes, const std::vector<Place>& places,
                                                   const torch::Tensor& to, const torch::Tensor& from) {
  return CellBuilder(axes, places, to, from).build();
}

engine::PlanSummary run_cells(const graph::ModelPtr& model, const Run& run, const Cells& given,
                              const Ids& positions, int64_t memory_budget, const Progress& progress,
                              const OnCells& on_cells) {
  engine::PlanSummary total;
  const auto cells = after_first_blocks(model, run, given, memory_budget, total.token_layers_to_run);
  const auto n_cells = static_cast<int64_t>(cells.size());
  const int64_t of_graph =
      std::max<int64_t>(1, kTokensOfGraph / std::max<int64_t>(1, static_cast<int64_t>(run.tokens.size())));
  int64_t done = 0;
  for (int64_t first = 0; first < n_cells; first += of_graph) {
    graph::Graph graph;
    std::unordered_map<graph::ReadId, Ids> cells_of;
    for (int64_t c = first; c < std::min(n_cells, first + of_graph); ++c) {
      auto interventions = run.interventions;
      const auto& own = cells[static_cast<size_t>(c)];
      interventions.insert(interventions.end(), own.begin(), own.end());
      const auto node = graph.segment(model, run.tokens, {}, interventions);
      cells_of[graph.read(node, last_residual(model->cfg(), positions))].push_back(c);
    }
    graph::RunOptions options;
    options.memory_budget = memory_budget;
    options.on_plan = [&](const engine::PlanSummary& plan) {
      total.token_layers_to_run += plan.token_layers_to_run;
      total.n_passes += plan.n_passes;
      total.blocks_read += plan.blocks_read;
      total.bytes_read += plan.bytes_read;
      total.peak_bytes = std::max(total.peak_bytes, plan.peak_bytes);
    };
    options.progress = [&](const std::string&, int64_t part, int64_t whole) {
      const int64_t here = std::min(of_graph, n_cells - first);
      report(progress, "patching", first + (whole > 0 ? here * part / whole : 0), n_cells);
    };
    graph.run(options, [&](std::vector<std::pair<graph::ReadId, engine::Captured>> readings) {
      Ids numbers;
      std::vector<torch::Tensor> resid;
      for (auto& [id, captured] : readings)
        for (const int64_t c : cells_of.at(id)) {
          numbers.push_back(c);
          resid.push_back(captured.values.select(1, 0));
        }
      on_cells(numbers, torch::stack(resid));
      done += static_cast<int64_t>(numbers.size());
    });
  }
  total.token_layers_asked = n_cells * static_cast<int64_t>(run.tokens.size()) * model->cfg().n_layers;
  report(progress, "patching", done, n_cells);
  return total;
}

PatchGrid patch_grid(const graph::ModelPtr& model, const std::vector<PatchPair>& pairs,
                     const PatchOptions& options) {
  check<std::invalid_argument>(!pairs.empty(), "patch_grid: at least one pair is needed, got none");
  const auto& axes = options.axes;
  const auto n_places = places_of(pairs.front()).size();
  std::vector<MetricReads> reads;
  for (const auto& pair : pairs) {
    const auto n = places_of(pair).size();
    check<std::invalid_argument>(n == n_places || !axes.by_position,
                                 "patch_grid: pairs must have as many positions, got ", n_places, " and ", n);
    reads.push_back(reads_of(pair.metric, static_cast<int64_t>(pair.to.tokens.size()), model->cfg().d_vocab));
  }
  PatchGrid out;
  const auto of_pairs = torch::zeros({static_cast<int64_t>(pairs.size())}, torch::kFloat64);
  out.to = of_pairs.clone();
  out.from = of_pairs.clone();
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto& pair = pairs[i];
    const auto at = static_cast<int64_t>(i);
    const auto activations = activations_at(model, {pair.to, pair.from}, axes.point);
    const auto cells =
        patch_cells(axes, places_of(pair), activations[0], patched_in(options, activations[1]));
    if (!out.values.defined()) {
      Ids sizes = {static_cast<int64_t>(pairs.size())};
      const auto add = [&](const char* name, int64_t size) {
        out.axes.emplace_back(name);
        sizes.push_back(size);
      };
      const auto& x = activations[0];
      add("layer", axes.layers.empty() ? x.size(0) : static_cast<int64_t>(axes.layers.size()));
      if (axes.by_position) add("position", static_cast<int64_t>(n_places));
      if (axes.by_head) add("head", axes.heads.empty() ? x.size(2) : static_cast<int64_t>(axes.heads.size()));
      if (axes.by_key) add("key", x.size(-1));
      out.values = torch::zeros(sizes, torch::kFloat64);
    }
    // The two runs themselves: the other one may be longer, and its metric's positions are its own.
    const auto alone = [&](const Run& run, const MetricReads& r) {
      torch::Tensor resid;
      run_cells(model, run, {{}}, r.positions, options.memory_budget, {},
                [&](const Ids&, const torch::Tensor& resid_NPD) { resid = resid_NPD[0]; });
      return resid;
    };
    const auto reads_from =
        reads_of(pair.metric, static_cast<int64_t>(pair.from.tokens.size()), model->cfg().d_vocab);
    const auto resid_to = alone(pair.to, reads[i]), resid_from = alone(pair.from, reads_from);
    torch::Tensor reference_PV;
    if (reads[i].needs_reference)
      reference_PV = model->readout((options.reference_is_to ? resid_to : resid_from).to(model->device()));
    CellMetrics{*model, pair.metric, reads[i], reference_PV, out.to.narrow(0, at, 1)}({0},
                                                                                      resid_to.unsqueeze(0));
    CellMetrics{*model, pair.metric, reads_from, reference_PV, out.from.narrow(0, at, 1)}(
        {0}, resid_from.unsqueeze(0));

    CellMetrics take(*model, pair.metric, reads[i], reference_PV, out.values[at].view({-1}));
    const auto n_cells = static_cast<int64_t>(cells.size());
    const auto progress = [&](const std::string& what, int64_t done, int64_t) {
      report(options.progress, what, at * n_cells + done, static_cast<int64_t>(pairs.size()) * n_cells);
    };
    const auto plan =
        run_cells(model, pair.to, cells, reads[i].positions, options.memory_budget, progress,
                  [&](const Ids& numbers, const torch::Tensor& resid_NPD) { take(numbers, resid_NPD); });
    out.token_layers_asked += plan.token_layers_asked;
    out.token_layers_to_run += plan.token_layers_to_run;
  }
  return out;
}

}  // namespace introspect::analysis
