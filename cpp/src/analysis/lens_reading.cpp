#include "introspect/analysis/lens_reading.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include <ATen/ATen.h>

#include "core/on_device.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"

namespace introspect::analysis {
namespace {

using hooks::Point;
using models::Model;

constexpr int64_t kTensors = 7;  // of the size of the logits, while they are measured

struct Stream {
  hooks::Site site;
  int64_t layer;
  std::string label;
};

std::vector<Stream> streams_of(const Lens& lens, const LensOptions& options) {
  check<std::invalid_argument>(
      !options.incl_mid || lens.kind() == LensKind::logit,
      "read_lens: incl_mid goes with a logit lens; translators read what a block leaves, got a ",
      to_string(lens.kind()), " lens");
  const auto known = lens.layers();
  std::vector<Stream> out;
  for (const auto layer : options.layers.empty() ? known : options.layers) {
    check<std::out_of_range>(std::ranges::find(known, layer) != known.end(),
                             "read_lens: layers must be of those that the ", to_string(lens.kind()),
                             " lens reads, ", known.front(), " to ", known.back(), ", got ", layer);
    if (layer == -1) {
      out.push_back({{Point::kResidPre, 0}, -1, "embed"});
      continue;
    }
    if (options.incl_mid) out.push_back({{Point::kResidMid, layer}, layer, concat(layer, "_mid")});
    out.push_back({{Point::kResidPost, layer}, layer, concat(layer)});
  }
  return out;
}

std::vector<int64_t> positions_of(const LensOptions& options, int64_t T) {
  std::vector<int64_t> out;
  for (const auto position : options.positions) {
    check<std::out_of_range>(position >= -T && position < T, "read_lens: positions must be ", -T, " to ",
                             T - 1, " in a text of ", T, " tokens, got ", position);
    out.push_back(position < 0 ? position + T : position);
  }
  for (int64_t t = 0; options.positions.empty() && t < T; ++t) out.push_back(t);
  return out;
}

/// Of each stream [P, D], on the model's device.
std::vector<torch::Tensor> residuals(const Model& model, const torch::Tensor& tokens,
                                     const std::vector<Stream>& streams,
                                     const std::vector<int64_t>& positions,
                                     const hooks::HookRegistry* hooks) {
  auto registry = hooks ? *hooks : model.make_hooks();
  const auto cache = std::make_shared<hooks::ActivationCache>();
  hooks::RecordOptions here;
  here.part.positions = positions;
  int64_t last = 0;
  for (const auto& stream : streams) {
    registry.record(hooks::hook_name(stream.site), cache, here);
    last = std::max(last, stream.site.layer);
  }
  models::ForwardOptions pass;
  pass.hooks = &registry;
  pass.logits_at = models::LogitsAt::kNone;
  pass.stop_at_layer = last + 1;
  model.forward(tokens, pass);
  std::vector<torch::Tensor> out;
  for (const auto& stream : streams) out.push_back(cache->at(stream.site)[0].detach().to(model.device()));
  return out;
}

torch::Tensor mean_under(const torch::Tensor& p, const torch::Tensor& values) {
  return (p * values).sum(-1);
}

/// Ranks from 1 of tokens int64 [..., m] under log-probabilities [..., V].
torch::Tensor ranks(const torch::Tensor& log_q, const torch::Tensor& ids) {
  std::vector<torch::Tensor> out;
  for (const auto& one : ids.unbind(-1)) {
    const auto own = log_q.gather(-1, one.unsqueeze(-1));
    out.push_back((log_q > own).sum(-1) + 1);
  }
  return at::stack(out, -1);
}

/// LensReading::measures of log-probabilities [n, P, V] against the model's own [P, V], for next tokens int64 [P].
std::map<std::string, torch::Tensor> measured(const torch::Tensor& log_q, const torch::Tensor& log_p,
                                              const torch::Tensor& next_P) {
  std::map<std::string, torch::Tensor> out;
  const auto p = log_p.exp(), q = log_q.exp();
  const auto forward = mean_under(p, log_p - log_q).clamp_min(0),
             reverse = mean_under(q, log_q - log_p).clamp_min(0);
  const auto log_m = at::logaddexp(log_p, log_q) - std::log(2.0);
  const auto next = next_P.clamp_min(0).view({1, -1, 1}).expand({log_q.size(0), -1, 1});
  const auto none = (next_P < 0).unsqueeze(0);
  out["entropy"] = -mean_under(q, log_q);
  out["max_probability"] = q.amax(-1);
  out["forward_kl"] = forward;
  out["reverse_kl"] = reverse;
  out["symmetric_kl"] = (forward + reverse) / 2;
  out["js"] = ((mean_under(p, log_p - log_m) + mean_under(q, log_q - log_m)) / 2).clamp_min(0);
  out["total_variation"] = (p - q).abs().sum(-1) / 2;
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  out["cross_entropy"] = (-log_q.gather(-1, next).squeeze(-1)).masked_fill(none, nan);
  out["rank"] = ranks(log_q, next).squeeze(-1).to(torch::kFloat64).masked_fill(none, nan);
  return out;
}

class Reader {
 public:
  Reader(const Model& model, const LensOptions& options, LensReading& out)
      : model_(model), options_(options), out_(out) {
    const auto n = static_cast<int64_t>(out.layers.size()), P = static_cast<int64_t>(out.positions.size());
    const auto floats = at::dtype(model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
    const auto m = static_cast<int64_t>(options.targets.size());
    out.top_ids = at::empty({n, P, options.top_k}, torch::kLong);
    out.top_log_probs = at::empty({n, P, options.top_k}, floats);
    out.target_ranks = at::empty({n, P, m}, torch::kLong);
    out.target_log_probs = at::empty({n, P, m}, floats);
  }

  /// Log-probabilities [n, P, V] of streams from `stream` on at positions from `position` on.
  void add(int64_t stream, int64_t position, const torch::Tensor& log_q, const torch::Tensor& log_p,
           const torch::Tensor& next_P) {
    // Of NaN any token would be the most probable one, and every rank the first.
    const auto bad = log_q.select(-1, 0).isnan();  // one NaN makes the whole row NaN
    if (bad.any().item<bool>()) {
      const auto first = bad.nonzero()[0];
      throw Error(concat("read_lens: what the lens reads at stream '",
                         out_.labels[static_cast<size_t>(stream + first[0].item<int64_t>())], "', position ",
                         out_.positions[static_cast<size_t>(position + first[1].item<int64_t>())],
                         " is not finite: the residual there is not, or the unembedding"));
    }
    const auto place = [&](const torch::Tensor& whole) {
      return whole.narrow(0, stream, log_q.size(0)).narrow(1, position, log_q.size(1));
    };
    if (options_.top_k > 0) {
      const auto [values, ids] = log_q.topk(options_.top_k, -1);
      place(out_.top_ids).copy_(ids);
      place(out_.top_log_probs).copy_(values);
    }
    if (!options_.targets.empty()) {
      const auto targets = on_device(options_.targets, log_q.device());
      place(out_.target_log_probs).copy_(log_q.index_select(-1, targets));
      place(out_.target_ranks).copy_(ranks(log_q, targets.expand({log_q.size(0), log_q.size(1), -1})));
    }
    if (!options_.measures) return;
    for (const auto& [name, values] : measured(log_q, log_p, next_P)) {
      auto& whole = out_.measures[name];
      if (!whole.defined()) whole = at::empty(out_.top_ids.sizes().slice(0, 2), torch::kFloat64);
      place(whole).copy_(values);
    }
  }

 private:
  const Model& model_;
  const LensOptions& options_;
  LensReading& out_;
};

void check_options(const Model& model, const Lens& lens, const torch::Tensor& tokens,
                   const LensOptions& options) {
  lens.check_model(model);
  check<ShapeError>(tokens.defined() && tokens.dim() == 2 && tokens.size(0) == 1 && tokens.numel() > 0 &&
                        tokens.scalar_type() == torch::kLong,
                    "read_lens: tokens must be int64 [1, pos] of one text, got ",
                    tokens.defined() ? tokens.sizes() : at::IntArrayRef{});
  const auto V = model.cfg().d_vocab;
  check<std::invalid_argument>(options.top_k >= 0 && options.top_k <= V, "read_lens: top_k must be 0 to ", V,
                               ", got ", options.top_k);
  for (const auto id : options.targets)
    check<std::out_of_range>(id >= 0 && id < V, "read_lens: targets must be tokens 0 to ", V - 1, ", got ",
                             id);
  check<std::invalid_argument>(options.memory_budget > 0, "read_lens: memory_budget must be positive, got ",
                               options.memory_budget);
}

}  // namespace

LensReading read_lens(const Model& model, const Lens& lens, const torch::Tensor& tokens,
                      const LensOptions& options) {
  check_options(model, lens, tokens, options);
  const auto T = tokens.size(1), last_layer = model.cfg().n_layers - 1;
  auto streams = streams_of(lens, options);
  LensReading out;
  out.positions = positions_of(options, T);
  for (const auto& stream : streams) {
    out.layers.push_back(stream.layer);
    out.labels.push_back(stream.label);
  }
  const auto n = static_cast<int64_t>(streams.size()), P = static_cast<int64_t>(out.positions.size());
  const auto is_final = [&](const Stream& stream) {
    return stream.site == hooks::Site{Point::kResidPost, last_layer};
  };
  if (options.measures && std::ranges::none_of(streams, is_final))
    streams.push_back({{Point::kResidPost, last_layer}, last_layer, ""});  // to compare with
  const auto resid = residuals(model, tokens, streams, out.positions, options.hooks);
  const auto final_stream = std::ranges::find_if(streams, is_final) - streams.begin();

  const auto here = tokens.to(torch::kCPU).contiguous();
  std::vector<int64_t> next;
  for (const auto position : out.positions) {
    out.tokens.push_back(here.const_data_ptr<int64_t>()[position]);
    next.push_back(position + 1 < T ? here.const_data_ptr<int64_t>()[position + 1] : -1);
  }
  const auto next_P = on_device(next, model.device());

  Reader reader(model, options, out);
  const auto element = model.dtype() == torch::kFloat64 ? 8 : 4;
  const auto rows = std::max<int64_t>(1, options.memory_budget / (kTensors * element * model.cfg().d_vocab));
  const auto n_positions = std::min(P, rows), n_streams = std::max<int64_t>(1, rows / n_positions);
  for (int64_t position = 0; position < P; position += n_positions) {
    const auto size = std::min(n_positions, P - position);
    const auto at_positions = [&](int64_t stream) {
      const auto& stream_resid = resid[static_cast<size_t>(stream)];
      return lens.translate(stream_resid.narrow(0, position, size),
                            streams[static_cast<size_t>(stream)].layer);
    };
    const bool needs_final = final_stream < static_cast<int64_t>(streams.size());
    torch::Tensor log_p;
    if (needs_final) log_p = model.readout(at_positions(final_stream)).log_softmax(-1);
    for (int64_t stream = 0; stream < n;) {
      check_interrupt();
      report(options.progress, "lens", position * n + stream * size, P * n);
      const auto next_here = next_P.narrow(0, position, size);
      if (stream == final_stream) {
        reader.add(stream++, position, log_p.unsqueeze(0), log_p, next_here);
        continue;
      }
      std::vector<torch::Tensor> some;
      const auto first = stream;
      while (stream < n && stream != final_stream && static_cast<int64_t>(some.size()) < n_streams)
        some.push_back(at_positions(stream++));
      reader.add(first, position, model.readout(at::stack(some)).log_softmax(-1), log_p, next_here);
    }
  }
  report(options.progress, "lens", P * n, P * n);
  return out;
}

}  // namespace introspect::analysis
