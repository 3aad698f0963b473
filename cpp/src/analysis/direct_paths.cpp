#include "analysis/direct_paths.h"

#include <algorithm>
#include <set>

#include <ATen/core/grad_mode.h>

#include "analysis/frozen_norm.h"
#include "core/on_device.h"

namespace introspect::analysis {
namespace {

using hooks::Point;
using hooks::Site;
using Sender = PathSender;

/// The residual stream of run C, from block to block: only what has changed of it.
class DirectRun {
 public:
  DirectRun(const models::Model& model, const Recording& to, const Recording& from,
            const std::vector<SenderRow>& rows, bool freeze_mlps)
      : model_(model), to_(to), from_(from), rows_(rows), freeze_mlps_(freeze_mlps) {
    std::vector<int64_t> positions;
    for (const auto& row : rows)
      positions.insert(positions.end(), row.positions.begin(), row.positions.end());
    positions_E_ = torch::tensor(positions, torch::kLong);
    const auto dtype = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
    change_ED_ = torch::zeros({positions_E_.size(0), model.cfg().d_model}, dtype);
  }

  std::vector<ReceiverInput> run(const std::vector<Site>& sites) {
    std::vector<ReceiverInput> out(sites.size());
    int64_t last = -1;
    for (const auto site : sites) last = std::max(last, site.layer);
    write(entries_of([](const Sender& s) { return s.kind == Sender::Kind::embed; }), Point::kResidPre, 0);
    for (int64_t layer = 0; layer <= last; ++layer) {
      const auto block = needs_block(layer, sites) ? model_.block(layer) : nullptr;
      change_ED_ = change_ED_.to(model_.device(layer));
      const auto read = [&](auto points, const torch::Tensor& change_ED) {
        for (size_t i = 0; i < sites.size(); ++i)
          if (sites[i].layer == layer && points(sites[i].point))
            out[i] = {input(sites[i], block.get(), change_ED), changed(change_ED)};
      };
      read([](Point p) { return p == Point::kQ || p == Point::kK || p == Point::kV; }, change_ED_);
      // What the MLP hears: in parallel blocks without the heads beside it, else with them.
      const auto mlp_in_ED = model_.cfg().parallel_attn_mlp ? change_ED_.clone() : change_ED_;
      send_heads(layer, block.get());
      read([](Point p) { return p == Point::kMlpIn; }, mlp_in_ED);
      const auto mlps =
          entries_of([&](const Sender& s) { return s.kind == Sender::Kind::mlp && s.layer == layer; });
      if (!freeze_mlps_) answer(layer, block.get(), mlp_in_ED, mlps);
      write(mlps, Point::kMlpOut, layer);
      read([](Point p) { return p == Point::kResidPost; }, change_ED_);
    }
    return out;
  }

 private:
  bool needs_block(int64_t layer, const std::vector<Site>& sites) const {
    const auto at_block = [&](Site s) {
      return s.layer == layer && s.point != Point::kMlpIn && s.point != Point::kResidPost;
    };
    const auto sends = [&](const SenderRow& row) {
      return std::any_of(row.senders.begin(), row.senders.end(),
                         [&](const Sender& s) { return s.kind == Sender::Kind::head && s.layer == layer; });
    };
    return !freeze_mlps_ || std::any_of(sites.begin(), sites.end(), at_block) ||
           std::any_of(rows_.begin(), rows_.end(), sends);
  }

  /// Entries, int64 on the CPU, of rows with a sender that is meant.
  template <typename Meant>
  torch::Tensor entries_of(const Meant& meant) const {
    std::vector<int64_t> out;
    int64_t first = 0;
    for (const auto& row : rows_) {
      const auto n = static_cast<int64_t>(row.positions.size());
      if (std::any_of(row.senders.begin(), row.senders.end(), meant))
        for (int64_t e = 0; e < n; ++e) out.push_back(first + e);
      first += n;
    }
    return torch::tensor(out, torch::kLong);
  }

  /// What was recorded at the positions of some entries (undefined: all), as the model's blocks take it.
  torch::Tensor at(const Recording& run, Point point, int64_t layer,
                   const torch::Tensor& entries = {}) const {
    const auto positions = entries.defined() ? positions_E_.index_select(0, entries) : positions_E_;
    const auto& recorded = run.at(point);
    return recorded[point == Point::kResidPost ? 0 : layer]
        .index_select(0, positions)
        .to(model_.device(layer), model_.dtype());
  }

  static torch::Tensor changed(const torch::Tensor& change_ED) {
    return change_ED.ne(0).any(1).to(torch::kCPU);
  }

  void add(const torch::Tensor& entries, const torch::Tensor& change_nD) {
    change_ED_.index_add_(0, on_device(entries, change_ED_.device()), change_nD.to(change_ED_.scalar_type()));
  }

  /// Adds what stands at a point of the other run less what stood there.
  void write(const torch::Tensor& entries, Point point, int64_t layer) {
    if (entries.numel() == 0) return;
    change_ED_ = change_ED_.to(model_.device(layer));
    add(entries, wide(at(from_, point, layer, entries)) - wide(at(to_, point, layer, entries)));
  }

  void send_heads(int64_t layer, const nn::Block* block) {
    const auto is_here = [&](const Sender& s) { return s.kind == Sender::Kind::head && s.layer == layer; };
    const auto entries = entries_of(is_here);
    if (entries.numel() == 0) return;
    auto sent_EH = torch::zeros({positions_E_.size(0), model_.cfg().n_heads}, torch::kBool);
    int64_t first = 0;
    for (const auto& row : rows_) {
      const auto n = static_cast<int64_t>(row.positions.size());
      for (const auto& sender : row.senders)
        if (is_here(sender)) sent_EH.narrow(0, first, n).select(1, sender.head).fill_(true);
      first += n;
    }
    const auto sent_nH1 = sent_EH.index_select(0, entries).unsqueeze(2).to(change_ED_.device());
    const auto z_nHK = at(to_, Point::kZ, layer, entries);
    const auto change_nHK = (at(from_, Point::kZ, layer, entries) - z_nHK) * sent_nH1;
    const auto& parts = block->parts();
    const auto& O = parts.attn.weights().O;
    if (!parts.ln1_post) return add(entries, at::linear(change_nHK.flatten(1), O.dense()));
    // A norm after attention answers to all heads together.
    const auto written = [&](const torch::Tensor& z) {
      return parts.ln1_post->apply(O.forward(z.flatten(1)));
    };
    add(entries, wide(written(z_nHK + change_nHK)) - wide(written(z_nHK)));
  }

  /// Adds what MLPs write now less what they wrote, but where senders stand for them.
  void answer(int64_t layer, const nn::Block* block, const torch::Tensor& in_change_ED,
              const torch::Tensor& senders) {
    auto answering = changed(in_change_ED);
    answering.index_fill_(0, senders, false);
    const auto entries = answering.nonzero().flatten();
    if (entries.numel() == 0) return;
    const auto& parts = block->parts();
    const auto change_nD = in_change_ED.index_select(0, on_device(entries, in_change_ED.device()));
    const auto in_nD = (at(to_, Point::kMlpIn, layer, entries) + change_nD).to(model_.dtype());
    auto out_nD = parts.mlp.forward(parts.ln2.apply(in_nD).unsqueeze(0), {}).squeeze(0);
    if (parts.ln2_post) out_nD = parts.ln2_post->apply(out_nD);
    add(entries, wide(out_nD) - wide(at(to_, Point::kMlpOut, layer, entries)));
  }

  torch::Tensor input(Site site, const nn::Block* block, const torch::Tensor& change_ED) const {
    const auto& cfg = model_.cfg();
    if (site.point == Point::kMlpIn || site.point == Point::kResidPost) {
      const auto stream_ED = wide(at(to_, site.point, site.layer)) + change_ED;
      return site.point == Point::kMlpIn ? stream_ED.to(model_.dtype()) : stream_ED;
    }
    const int64_t H = cfg.n_heads, G = cfg.n_key_value_heads, K = cfg.d_head;
    const int64_t first = site.point == Point::kQ ? 0 : site.point == Point::kK ? H : H + G;
    const int64_t n = site.point == Point::kQ ? H : G;
    const auto stream_ED = (at(to_, Point::kResidPre, site.layer) + change_ED).to(model_.dtype());
    const auto normed_ED = block->parts().ln1.apply(stream_ED);
    return block->parts().attn.weights().QKV.rows(first * K, n * K).forward(normed_ED).view({-1, n, K});
  }

  const models::Model& model_;
  const Recording &to_, &from_;
  const std::vector<SenderRow>& rows_;
  bool freeze_mlps_;
  torch::Tensor positions_E_;  // int64 on the CPU
  torch::Tensor change_ED_;    // of the stream where the run stands
};

}  // namespace

std::vector<Point> points_to_record(const PathPatchingOptions& options) {
  std::set<Point> out = {Point::kResidPost};
  for (const auto& together : options.senders)
    for (const auto& sender : together)
      out.insert(sender.kind == Sender::Kind::head  ? Point::kZ
                 : sender.kind == Sender::Kind::mlp ? Point::kMlpOut
                                                    : Point::kResidPre);
  for (const auto& together : options.receivers)
    for (const auto& receiver : together)
      if (receiver.kind != PathReceiver::Kind::logits)
        out.insert(
            {Point::kResidPre, receiver.kind == PathReceiver::Kind::mlp ? Point::kMlpIn : Point::kResidPre});
  if (!options.freeze_mlps) out.insert({Point::kMlpIn, Point::kMlpOut});
  return {out.begin(), out.end()};
}

std::vector<ReceiverInput> receiver_inputs(const models::Model& model, const Recording& to,
                                           const Recording& from, const std::vector<SenderRow>& rows,
                                           const std::vector<Site>& sites, bool freeze_mlps) {
  const at::NoGradGuard no_grad;
  return DirectRun(model, to, from, rows, freeze_mlps).run(sites);
}

}  // namespace introspect::analysis
