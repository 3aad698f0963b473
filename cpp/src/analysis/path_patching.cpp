#include "introspect/analysis/path_patching.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <utility>

#include "introspect/core/check.h"

#include "analysis/direct_paths.h"
#include "core/on_device.h"

namespace introspect::analysis {
namespace {

using hooks::Intervention;
using hooks::Point;
using hooks::Site;
using Ids = std::vector<int64_t>;
using Kind = PathReceiver::Kind;
using Sender = PathSender;

constexpr int64_t kRowsOfReadout = 4096;  // residuals that become logits at a time

void check_node(const char* what, int64_t given, int64_t n) {
  check<std::out_of_range>(given >= 0 && given < n, "path_patching: ", what, " are 0 to ", n - 1, ", got ",
                           given);
}

void check_senders(const std::vector<Sender>& senders, const models::Config& cfg) {
  check<std::invalid_argument>(!senders.empty(), "path_patching: an entry of senders is empty");
  for (const auto& sender : senders) {
    if (sender.kind == Sender::Kind::embed) continue;
    check_node("layers of senders", sender.layer, cfg.n_layers);
    if (sender.kind == Sender::Kind::head) check_node("heads", sender.head, cfg.n_heads);
  }
}

void check_receivers(const std::vector<PathReceiver>& receivers, const models::Config& cfg) {
  check<std::invalid_argument>(!receivers.empty(), "path_patching: an entry of receivers is empty");
  for (const auto& receiver : receivers) {
    if (receiver.kind == Kind::logits) {
      check<std::invalid_argument>(receivers.size() == 1,
                                   "path_patching: logits are a receiver by themselves: what other receivers "
                                   "of the entry read would be replaced by what reaches the logits");
      continue;
    }
    check_node("layers of receivers", receiver.layer, cfg.n_layers);
    if (receiver.kind == Kind::q) check_node("heads", receiver.head, cfg.n_heads);
    if (receiver.kind == Kind::k || receiver.kind == Kind::v)
      check_node("heads of keys and values (one for each group of query heads)", receiver.head,
                 cfg.n_key_value_heads);
  }
}

Site site_of(const PathReceiver& receiver, const models::Config& cfg) {
  switch (receiver.kind) {
    case Kind::q:
      return {Point::kQ, receiver.layer};
    case Kind::k:
      return {Point::kK, receiver.layer};
    case Kind::v:
      return {Point::kV, receiver.layer};
    case Kind::mlp:
      return {Point::kMlpIn, receiver.layer};
    case Kind::logits:
      break;
  }
  return {Point::kResidPost, cfg.n_layers - 1};
}

/// Places along the residual stream: a receiver hears the senders below it. In parallel blocks the MLP reads what attention
/// reads.
int64_t height(const Sender& sender) {
  if (sender.kind == Sender::Kind::embed) return -1;
  return 2 * sender.layer + (sender.kind == Sender::Kind::mlp ? 1 : 0);
}

int64_t height(const PathReceiver& receiver, const models::Config& cfg) {
  if (receiver.kind == Kind::logits) return 2 * cfg.n_layers;
  return 2 * receiver.layer + (receiver.kind == Kind::mlp && !cfg.parallel_attn_mlp ? 1 : 0);
}

bool hears(const PathReceiver& receiver, const std::vector<Sender>& senders, const models::Config& cfg) {
  return std::any_of(senders.begin(), senders.end(),
                     [&](const Sender& sender) { return height(sender) < height(receiver, cfg); });
}

Ids sender_positions(const PathPatchingOptions& options, int64_t T) {
  Ids out = options.positions;
  if (out.empty()) {
    out.resize(static_cast<size_t>(T));
    std::iota(out.begin(), out.end(), int64_t{0});
  }
  for (auto& position : out) {
    check<std::out_of_range>(position >= -T && position < T, "path_patching: positions of a prompt of ", T,
                             " tokens are ", -T, " to ", T - 1, ", got ", position);
    if (position < 0) position += T;
  }
  return out;
}

/// All rows of a pair: sender by sender, position by position.
std::vector<SenderRow> sender_rows(const PathPatchingOptions& options, int64_t T) {
  const auto positions = sender_positions(options, T);
  std::vector<SenderRow> out;
  for (const auto& senders : options.senders) {
    if (!options.by_position) out.push_back({senders, positions});
    if (options.by_position)
      for (const int64_t position : positions) out.push_back({senders, {position}});
  }
  return out;
}

/// What a grid amounts to, before it runs.
struct Size {
  int64_t cells = 0, token_layers = 0;
};

Size size_of(const std::vector<PatchPair>& pairs, const PathPatchingOptions& options,
             const models::Config& cfg) {
  Size out;
  for (const auto& pair : pairs) {
    const auto T = static_cast<int64_t>(pair.to.tokens.size());
    for (const auto& row : sender_rows(options, T))
      for (const auto& receivers : options.receivers) {
        int64_t first_layer = std::numeric_limits<int64_t>::max();
        for (const auto& receiver : receivers)
          if (hears(receiver, row.senders, cfg))
            first_layer =
                std::min(first_layer, receiver.kind == Kind::logits ? cfg.n_layers : receiver.layer);
        if (first_layer > cfg.n_layers) continue;
        ++out.cells;
        out.token_layers += (cfg.n_layers - first_layer) * (T - *std::ranges::min_element(row.positions));
      }
  }
  return out;
}

std::string duration(double seconds) {
  const auto of = [&](double unit, const char* name) {
    return concat(static_cast<int64_t>(seconds / unit + 0.5), " ", name);
  };
  return seconds < 120 ? of(1, "seconds") : seconds < 7200 ? of(60, "minutes") : of(3600, "hours");
}

/// Both runs of a pair at the points asked for.
struct Recorded {
  Recording to, from;
  double seconds = 0;
};

Recorded record(const graph::ModelPtr& model, const PatchPair& pair, const std::vector<Point>& points,
                int64_t memory_budget) {
  const auto start = std::chrono::steady_clock::now();
  graph::Graph graph;
  std::vector<graph::ReadId> ids;
  for (const auto* run : {&pair.to, &pair.from}) {
    const auto node = graph.segment(model, run->tokens, {}, run->interventions);
    graph::Read read;
    read.positions.resize(run->tokens.size());
    std::iota(read.positions.begin(), read.positions.end(), int64_t{0});
    for (const auto point : points) {
      read.point = point;
      read.layers.clear();
      if (point == Point::kResidPost) read.layers = {model->cfg().n_layers - 1};
      ids.push_back(graph.read(node, read));
    }
  }
  graph::RunOptions options;
  options.memory_budget = memory_budget;
  const auto captured = graph.run(options);
  Recorded out;
  for (size_t i = 0; i < ids.size(); ++i) {
    auto& run = i < points.size() ? out.to : out.from;
    run[points[i % points.size()]] =
        captured[static_cast<size_t>(ids[i])].values.transpose(0, 1).contiguous();
  }
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return out;
}

/// The cells of one pair.
class PairOfRuns {
 public:
  PairOfRuns(graph::ModelPtr model, const PatchPair& pair, const PathPatchingOptions& options,
             Recorded recorded, torch::Tensor to, torch::Tensor from)
      : model_(std::move(model)),
        pair_(pair),
        options_(options),
        recorded_(std::move(recorded)),
        reads_(reads_of(pair.metric, n_tokens(), model_->cfg().d_vocab)) {
    const auto resid = [&](const Recording& run) { return at_reads(run.at(Point::kResidPost)[0]); };
    if (reads_.needs_reference)
      reference_PV_ = readout(resid(options.reference_is_to ? recorded_.to : recorded_.from), {});
    to.copy_(metric(resid(recorded_.to).unsqueeze(0))[0]);
    from.copy_(metric(resid(recorded_.from).unsqueeze(0))[0]);
    to_ = to.item<double>();
  }

  /// Fills values [receivers, rows].
  void run(torch::Tensor values, const std::function<void(int64_t)>& tick, PatchGrid& cost) {
    values.fill_(to_);
    auto rows = sender_rows(options_, n_tokens());
    // Nothing moves between positions on the way to the logits.
    if (std::ranges::all_of(options_.receivers, [](const auto& r) { return r.front().kind == Kind::logits; }))
      for (auto& row : rows)
        std::erase_if(row.positions, [&](int64_t position) {
          return std::ranges::find(reads_.positions, position) == reads_.positions.end();
        });
    std::vector<Site> sites;
    for (const auto& receivers : options_.receivers)
      for (const auto& receiver : receivers) {
        const auto site = site_of(receiver, model_->cfg());
        if (std::find(sites.begin(), sites.end(), site) == sites.end()) sites.push_back(site);
      }
    const int64_t of_chunk = rows_of_chunk(sites);
    int64_t done = 0;
    for (size_t first = 0; first < rows.size(); first += static_cast<size_t>(of_chunk)) {
      const auto n = std::min(static_cast<size_t>(of_chunk), rows.size() - first);
      const auto begin = rows.begin() + static_cast<std::ptrdiff_t>(first);
      const std::vector<SenderRow> chunk(begin, begin + static_cast<std::ptrdiff_t>(n));
      const auto inputs =
          receiver_inputs(*model_, recorded_.to, recorded_.from, chunk, sites, options_.freeze_mlps);
      const auto at = values.narrow(1, static_cast<int64_t>(first), static_cast<int64_t>(n));
      for (size_t r = 0; r < options_.receivers.size(); ++r)
        if (options_.receivers[r].front().kind == Kind::logits)
          read_logits(chunk, inputs[index_of(sites, options_.receivers[r].front())],
                      at[static_cast<int64_t>(r)]);
      run_chunk(chunk, sites, inputs, at, [&](int64_t more) { tick(done + more); }, cost);
      done += static_cast<int64_t>(n * options_.receivers.size());
      tick(done);
    }
  }

 private:
  int64_t n_tokens() const { return static_cast<int64_t>(pair_.to.tokens.size()); }

  size_t index_of(const std::vector<Site>& sites, const PathReceiver& receiver) const {
    const auto found = std::find(sites.begin(), sites.end(), site_of(receiver, model_->cfg()));
    return static_cast<size_t>(found - sites.begin());
  }

  /// As many as a quarter of the budget has room for: what all receivers read, once as read and once as interventions.
  int64_t rows_of_chunk(const std::vector<Site>& sites) const {
    const auto points = models::hook_points(model_->cfg());
    int64_t numbers = 8 * model_->cfg().d_model;
    for (const auto site : sites)
      numbers += points.width(site.point).value_or(0) * points.heads(site.point).value_or(1);
    for (const auto& receivers : options_.receivers)
      for (const auto& receiver : receivers)
        if (receiver.kind != Kind::logits)
          numbers += points.width(site_of(receiver, model_->cfg()).point).value_or(0);
    const int64_t entries = options_.by_position ? 1 : n_tokens();
    return std::max<int64_t>(1, options_.memory_budget / 4 / (numbers * entries * 8));
  }

  torch::Tensor at_reads(const torch::Tensor& resid_TD) const {
    return resid_TD.index_select(0, torch::tensor(reads_.positions, torch::kLong));
  }

  torch::Tensor readout(const torch::Tensor& resid, const torch::Tensor& vocab_ids) const {
    return model_->readout(resid.to(model_->device()), vocab_ids);
  }

  /// resid [N, P, D] -> float64 [N] on the CPU
  torch::Tensor metric(const torch::Tensor& resid_NPD) const {
    const int64_t step = std::max<int64_t>(1, kRowsOfReadout / resid_NPD.size(1));
    std::vector<torch::Tensor> out;
    for (const auto& some_NPD : resid_NPD.split(step))
      out.push_back(evaluate(pair_.metric, reads_, readout(some_NPD, reads_.vocab_ids), reference_PV_)
                        .to(torch::kCPU, torch::kFloat64));
    return torch::cat(out);
  }

  /// Paths to the logits need no run D.
  void read_logits(const std::vector<SenderRow>& rows, const ReceiverInput& input,
                   torch::Tensor values) const {
    const auto n = static_cast<int64_t>(rows.size());
    const auto to_PD = at_reads(recorded_.to.at(Point::kResidPost)[0]);
    const auto value_ED = input.value_E.to(torch::kCPU, to_PD.scalar_type());
    const auto changed = input.changed_E.accessor<bool, 1>();
    auto resid_NPD = to_PD.unsqueeze(0).repeat({n, 1, 1});
    Ids touched;
    int64_t e = 0;
    for (int64_t r = 0; r < n; ++r)
      for (const int64_t position : rows[static_cast<size_t>(r)].positions) {
        const auto found = std::find(reads_.positions.begin(), reads_.positions.end(), position);
        if (found != reads_.positions.end() && changed[e]) {
          resid_NPD[r][found - reads_.positions.begin()].copy_(value_ED[e]);
          if (touched.empty() || touched.back() != r) touched.push_back(r);
        }
        ++e;
      }
    if (touched.empty()) return;
    const auto places = torch::tensor(touched, torch::kLong);
    values.index_copy_(0, places, metric(resid_NPD.index_select(0, places)));
  }

  /// Runs D of every row and every entry of receivers but logits.
  void run_chunk(const std::vector<SenderRow>& rows, const std::vector<Site>& sites,
                 const std::vector<ReceiverInput>& inputs, torch::Tensor values,
                 const std::function<void(int64_t)>& tick, PatchGrid& cost) const {
    std::vector<std::vector<Intervention>> cells;
    std::vector<std::pair<int64_t, int64_t>> places;  // receivers, row
    for (size_t r = 0; r < options_.receivers.size(); ++r) {
      if (options_.receivers[r].front().kind == Kind::logits) continue;
      int64_t first = 0;
      for (size_t s = 0; s < rows.size(); ++s) {
        auto cell = interventions(rows[s], first, options_.receivers[r], sites, inputs);
        first += static_cast<int64_t>(rows[s].positions.size());
        if (cell.empty()) continue;
        cells.push_back(std::move(cell));
        places.emplace_back(static_cast<int64_t>(r), static_cast<int64_t>(s));
      }
    }
    if (cells.empty()) return;
    const auto progress = [&](const std::string&, int64_t done, int64_t whole) {
      tick(whole > 0 ? static_cast<int64_t>(rows.size() * options_.receivers.size()) * done / whole : 0);
    };
    const auto plan = run_cells(model_, pair_.to, cells, reads_.positions, options_.memory_budget, progress,
                                [&](const Ids& numbers, const torch::Tensor& resid_NPD) {
                                  const auto metrics = metric(resid_NPD);
                                  for (size_t i = 0; i < numbers.size(); ++i) {
                                    const auto [r, s] = places[static_cast<size_t>(numbers[i])];
                                    values[r][s].copy_(metrics[static_cast<int64_t>(i)]);
                                  }
                                });
    cost.token_layers_asked += plan.token_layers_asked;
    cost.token_layers_to_run += plan.token_layers_to_run;
  }

  /// What is put in in run D: entries of a row from `first` on; none if nothing has reached the receivers.
  std::vector<Intervention> interventions(const SenderRow& row, int64_t first,
                                          const std::vector<PathReceiver>& receivers,
                                          const std::vector<Site>& sites,
                                          const std::vector<ReceiverInput>& inputs) const {
    const auto n = static_cast<int64_t>(row.positions.size());
    std::vector<Intervention> out;
    for (const auto& receiver : receivers) {
      const auto& input = inputs[index_of(sites, receiver)];
      const auto changed = input.changed_E.narrow(0, first, n);
      if (!changed.any().item<bool>()) continue;
      Intervention patch;
      patch.op = "replace";
      patch.point = site_of(receiver, model_->cfg()).point;
      auto value = input.value_E.narrow(0, first, n);
      if (receiver.kind != Kind::mlp) {
        patch.heads = {receiver.head};
        value = value.narrow(1, receiver.head, 1);
      }
      const auto* is_changed = changed.const_data_ptr<bool>();
      for (int64_t e = 0; e < n; ++e)
        if (is_changed[e]) patch.positions.push_back(row.positions[static_cast<size_t>(e)]);
      // As hooks::Intervention wants it: of every position from the first of the sequence on.
      auto sizes = value.sizes().vec();
      sizes[0] = *std::ranges::max_element(patch.positions) + 1;
      const auto chosen = changed.nonzero().flatten().to(value.device());
      patch.values[receiver.layer] =
          torch::zeros(sizes, value.options())
              .index_copy(0, on_device(patch.positions, value.device()), value.index_select(0, chosen))
              .unsqueeze(0);
      out.push_back(std::move(patch));
    }
    return out;
  }

  graph::ModelPtr model_;
  const PatchPair& pair_;
  const PathPatchingOptions& options_;
  Recorded recorded_;
  MetricReads reads_;
  torch::Tensor reference_PV_;
  double to_ = 0;
};

}  // namespace

PatchGrid path_patching(const graph::ModelPtr& model, const std::vector<PatchPair>& pairs,
                        const PathPatchingOptions& options) {
  const auto& cfg = model->cfg();
  check<std::invalid_argument>(!pairs.empty() && !options.senders.empty() && !options.receivers.empty(),
                               "path_patching: pairs, senders and receivers are needed, got ", pairs.size(),
                               ", ", options.senders.size(), " and ", options.receivers.size());
  for (const auto& senders : options.senders) check_senders(senders, cfg);
  for (const auto& receivers : options.receivers) check_receivers(receivers, cfg);
  const auto T = pairs.front().to.tokens.size();
  for (const auto& pair : pairs) {
    const auto n = pair.to.tokens.size();
    check<std::invalid_argument>(n == pair.from.tokens.size(),
                                 "path_patching: runs of a pair must have as many tokens, got ", n, " and ",
                                 pair.from.tokens.size());
    check<std::invalid_argument>(pair.to.interventions.empty() && pair.from.interventions.empty(),
                                 "path_patching: the runs themselves take no interventions");
    check<std::invalid_argument>(!options.by_position || n == T,
                                 "path_patching: by position, pairs must have as many tokens, got ", T,
                                 " and ", n);
    sender_positions(options, static_cast<int64_t>(n));
    reads_of(pair.metric, static_cast<int64_t>(n), cfg.d_vocab);
  }
  const auto size = size_of(pairs, options, cfg);
  const auto points = points_to_record(options);

  const auto n_pairs = static_cast<int64_t>(pairs.size());
  const auto n_positions =
      options.by_position ? static_cast<int64_t>(sender_positions(options, static_cast<int64_t>(T)).size())
                          : 1;
  const auto n_senders = static_cast<int64_t>(options.senders.size());
  const auto n_receivers = static_cast<int64_t>(options.receivers.size());
  PatchGrid out;
  out.axes = {"receiver", "sender"};
  if (options.by_position) out.axes.emplace_back("position");
  for (int64_t p = 0; p < n_pairs; ++p) {
    const auto& pair = pairs[static_cast<size_t>(p)];
    auto recorded = record(model, pair, points, options.memory_budget);
    if (p == 0) {
      const double per_token_layer =
          recorded.seconds / static_cast<double>(2 * T) / static_cast<double>(cfg.n_layers);
      check<std::invalid_argument>(size.cells <= options.most_cells, "path_patching: ", size.cells,
                                   " cells (", n_pairs, " pairs, ", n_senders * n_positions, " senders, ",
                                   n_receivers, " receivers) are more than the limit (max_cells) of ",
                                   options.most_cells, ": up to ", size.token_layers,
                                   " tokens times layers, ",
                                   duration(per_token_layer * static_cast<double>(size.token_layers)),
                                   " at the speed of the two runs of the first pair");
      out.values = torch::zeros({n_pairs, n_receivers, n_senders * n_positions}, torch::kFloat64);
      out.to = torch::zeros({n_pairs}, torch::kFloat64);
      out.from = torch::zeros({n_pairs}, torch::kFloat64);
    }
    int64_t done = p * n_receivers * n_senders * n_positions;
    const auto tick = [&](int64_t n) {
      report(options.progress, "path patching", done + n, n_pairs * n_receivers * n_senders * n_positions);
    };
    PairOfRuns(model, pair, options, std::move(recorded), out.to[p], out.from[p])
        .run(out.values[p], tick, out);
  }
  if (options.by_position) out.values = out.values.view({n_pairs, n_receivers, n_senders, n_positions});
  return out;
}

}  // namespace introspect::analysis
