#include "circuits/exact_edges.h"

#include <algorithm>

#include "core/on_device.h"
#include "introspect/core/interrupt.h"

namespace introspect::circuits {

namespace {

constexpr int64_t kTokensPerPass = 4096;

struct Edge {
  int64_t sender, receiver;
};

class ExactEdges {
 public:
  ExactEdges(const Decoder& decoder, const Measure& measure, const Decoder::Run& clean,
             const torch::Tensor& change, const torch::Tensor& chosen, const Progress& progress)
      : decoder_(decoder),
        nodes_(decoder.nodes()),
        measure_(measure),
        clean_(clean),
        change_(change.to(clean.senders.scalar_type())),
        chosen_(chosen),
        progress_(progress) {
    total_ = chosen.sum().item<int64_t>();
    scores_ = at::zeros({nodes_.n_senders(), nodes_.n_receivers()}, torch::kFloat64);
    base_B_ = measure.values(clean.streams.back().unsqueeze(0))[0];
    B_ = change_.size(1);
    T_ = change_.size(2);
  }

  torch::Tensor run() {
    for (int64_t layer = 0; layer < nodes_.n_layers; ++layer) {
      of_attention(layer);
      of_mlp(layer);
    }
    for (const auto& edges : chunks(nodes_.logits(), 1)) note(edges, clean_.streams.back() + changes(edges));
    report(progress_, "exact edges", total_, total_);
    return scores_;
  }

 private:
  /// The chosen edges into n receivers from `first` on, receiver by receiver, in groups that make one pass.
  std::vector<std::vector<Edge>> chunks(int64_t first, int64_t n) const {
    const auto size = static_cast<size_t>(std::max<int64_t>(1, kTokensPerPass / (B_ * T_)));
    const auto is_chosen = chosen_.accessor<bool, 2>();
    std::vector<std::vector<Edge>> out;
    for (int64_t receiver = first; receiver < first + n; ++receiver)
      for (int64_t sender = 0; sender < nodes_.n_before(receiver); ++sender) {
        if (!is_chosen[sender][receiver]) continue;
        if (out.empty() || out.back().size() == size) out.emplace_back();
        out.back().push_back({sender, receiver});
      }
    return out;
  }

  /// The senders' changes of some edges, [E, B, T, D].
  torch::Tensor changes(const std::vector<Edge>& edges) const {
    std::vector<int64_t> ids;
    for (const auto& edge : edges) ids.push_back(edge.sender);
    return change_.index_select(0, on_device(ids, change_.device()));
  }

  void of_attention(int64_t layer) {
    const auto& x = clean_.streams[static_cast<size_t>(layer)];
    const int64_t first = nodes_.first_reader(layer);
    torch::Tensor qkv;
    for (const auto& edges : chunks(first, nodes_.n_readers() - 1)) {
      if (!qkv.defined()) qkv = decoder_.project(layer, x);
      const auto n = static_cast<int64_t>(edges.size());
      auto rows = qkv.unsqueeze(0).repeat({n, 1, 1, 1, 1});  // [E, B, T, R, K]
      for (int64_t from = 0, to = 0; from < n; from = to) {  // edges into one receiver
        const int64_t receiver = edges[static_cast<size_t>(from)].receiver;
        while (to < n && edges[static_cast<size_t>(to)].receiver == receiver) ++to;
        const auto changed = x + changes({edges.begin() + from, edges.begin() + to});
        rows.narrow(0, from, to - from)
            .select(3, receiver - first)
            .copy_(decoder_.project_some(layer, changed.flatten(0, 1), receiver - first, 1)
                       .squeeze(2)
                       .view({to - from, B_, T_, -1}));
      }
      const auto out = decoder_.attention_out(layer, decoder_.attend(layer, rows.flatten(0, 1)));
      const auto before = x.repeat({n, 1, 1});
      go_on(edges, layer + 1, decoder_.mlp_half(layer, before, before + out));
    }
  }

  void of_mlp(int64_t layer) {
    const auto after = clean_.streams[static_cast<size_t>(layer) + 1];
    const auto mid = after - clean_.senders[nodes_.mlp(layer)];
    const auto& read = nodes_.parallel ? clean_.streams[static_cast<size_t>(layer)] : mid;
    for (const auto& edges : chunks(nodes_.mlp_reader(layer), 1)) {
      const auto out = decoder_.mlp_out(layer, (read + changes(edges)).flatten(0, 1));
      go_on(edges, layer + 1, mid.repeat({static_cast<int64_t>(edges.size()), 1, 1}) + out);
    }
  }

  void go_on(const std::vector<Edge>& edges, int64_t layer, torch::Tensor x) {
    for (; layer < nodes_.n_layers; ++layer) {
      check_interrupt();
      x = decoder_.block(layer, x);
    }
    note(edges, x.unflatten(0, {-1, B_}));
  }

  void note(const std::vector<Edge>& edges, const torch::Tensor& last_EBTD) {
    const auto effects = (measure_.values(last_EBTD) - base_B_).to(torch::kCPU, torch::kFloat64).sum(1);
    for (size_t e = 0; e < edges.size(); ++e)
      scores_[edges[e].sender][edges[e].receiver] = effects[static_cast<int64_t>(e)];
    done_ += static_cast<int64_t>(edges.size());
    report(progress_, "exact edges", done_, total_);
  }

  const Decoder& decoder_;
  const Nodes& nodes_;
  const Measure& measure_;
  const Decoder::Run& clean_;
  torch::Tensor change_, chosen_;
  const Progress& progress_;
  torch::Tensor scores_, base_B_;
  int64_t B_ = 0, T_ = 0, done_ = 0, total_ = 0;
};

}  // namespace

torch::Tensor chosen_edges(const Nodes& nodes, const std::vector<std::string>& names) {
  if (names.empty()) return nodes.edges();
  auto out = at::zeros({nodes.n_senders(), nodes.n_receivers()}, torch::kBool);
  for (const auto& name : names) {
    const auto [sender, receiver] = nodes.parse_edge(name);
    out[sender][receiver] = true;
  }
  return out;
}

torch::Tensor exact_edges(const Decoder& decoder, const Measure& measure, const Decoder::Run& clean,
                          const torch::Tensor& change_UBTD, const torch::Tensor& chosen,
                          const Progress& progress) {
  return ExactEdges(decoder, measure, clean, change_UBTD, chosen, progress).run();
}

}  // namespace introspect::circuits
