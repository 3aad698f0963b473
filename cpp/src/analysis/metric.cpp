#include "introspect/analysis/metric.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string_view>
#include <utility>

#include <ATen/ATen.h>

#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::analysis {
namespace {

using Kind = MetricTerm::Kind;
using Ids = std::vector<int64_t>;

struct KindInfo {
  Kind kind;
  std::string_view name;
  bool has_right, has_wrong, whole_vocab, has_reference;
};

constexpr std::array kKinds = {
    KindInfo{Kind::logit_difference, "logit_difference", true, true, false, false},
    KindInfo{Kind::log_probability, "log_probability", true, false, true, false},
    KindInfo{Kind::probability, "probability", true, false, true, false},
    KindInfo{Kind::probability_difference, "probability_difference", true, true, true, false},
    KindInfo{Kind::rank, "rank", true, false, true, false},
    KindInfo{Kind::accuracy, "accuracy", true, true, false, false},
    KindInfo{Kind::divergence, "divergence", false, false, true, true},
    KindInfo{Kind::js_divergence, "js_divergence", false, false, true, true},
};

const KindInfo& info(Kind kind) {
  return *std::ranges::find(kKinds, kind, &KindInfo::kind);
}

int64_t resolved(int64_t position, int64_t n_tokens) {
  return position < 0 ? position + n_tokens : position;
}

void check_tokens(const KindInfo& kind, const Ids& ids, bool wanted, const char* which, int64_t d_vocab) {
  check<std::invalid_argument>(ids.empty() != wanted, "metric ", kind.name, ": ", which, " tokens are ",
                               wanted ? "needed, got none" : "not used");
  for (const int64_t id : ids)
    check<std::out_of_range>(id >= 0 && id < d_vocab, "metric ", kind.name, ": token ids must be 0 to ",
                             d_vocab - 1, ", got ", id);
}

void check_term(const MetricTerm& term, int64_t n_tokens, int64_t d_vocab) {
  const auto& kind = info(term.kind);
  check_tokens(kind, term.right, kind.has_right, "right", d_vocab);
  check_tokens(kind, term.wrong, kind.has_wrong, "wrong", d_vocab);
  check<std::invalid_argument>(term.kind != Kind::rank || term.right.size() == 1,
                               "metric rank: one token is needed, got ", term.right.size());
  check<std::invalid_argument>(std::isfinite(term.weight), "metric ", kind.name,
                               ": the weight must be finite, got ", term.weight);
  const int64_t at = resolved(term.position, n_tokens);
  check<std::out_of_range>(at >= 0 && at < n_tokens, "metric ", kind.name, ": positions of a prompt of ",
                           n_tokens, " tokens are ", -n_tokens, " to ", n_tokens - 1, ", got ",
                           term.position);
  check<ShapeError>(
      !term.reference_V.defined() || (term.reference_V.dim() == 1 && term.reference_V.size(0) == d_vocab),
      "metric ", kind.name, ": the reference must be [", d_vocab, "], got ",
      term.reference_V.defined() ? concat(term.reference_V.sizes()) : "");
}

/// Where ids stand among the columns.
torch::Tensor columns(const Ids& ids, const MetricReads& reads, torch::Device device) {
  auto out = torch::tensor(ids, torch::kLong);
  if (reads.vocab_ids.defined()) out = torch::searchsorted(reads.vocab_ids, out);
  return out.to(device);
}

torch::Tensor js_divergence(const torch::Tensor& log_p, const torch::Tensor& log_q) {
  const auto log_mean = torch::logaddexp(log_p, log_q) - std::log(2.0);
  const auto half = [&](const torch::Tensor& log_x) {
    return torch::where(log_x.isneginf(), 0, log_x.exp() * (log_x - log_mean)).sum(-1);
  };
  return (half(log_p) + half(log_q)) / 2;
}

/// NaN where one of the logits [..., n] is: comparisons with NaN are false, which would read as a first rank.
torch::Tensor unless_nan(const torch::Tensor& value, const torch::Tensor& logits) {
  return value.masked_fill(logits.isnan().any(-1), std::numeric_limits<double>::quiet_NaN());
}

torch::Tensor value_of(const MetricTerm& term, const MetricReads& reads, const torch::Tensor& logits,
                       const torch::Tensor& reference_V) {
  const auto at = [&](const torch::Tensor& x, const Ids& ids) {
    return x.index_select(-1, columns(ids, reads, x.device()));
  };
  switch (term.kind) {
    case Kind::logit_difference:
      return at(logits, term.right).mean(-1) - at(logits, term.wrong).mean(-1);
    case Kind::log_probability:
      return at(logits, term.right).logsumexp(-1) - logits.logsumexp(-1);
    case Kind::probability:
      return at(logits.softmax(-1), term.right).sum(-1);
    case Kind::probability_difference: {
      const auto p = logits.softmax(-1);
      return at(p, term.right).sum(-1) - at(p, term.wrong).sum(-1);
    }
    case Kind::rank:
      return unless_nan(1 + (logits > at(logits, term.right)).sum(-1).to(logits.scalar_type()), logits);
    case Kind::accuracy: {
      const auto right = at(logits, term.right), wrong = at(logits, term.wrong);
      return unless_nan((right.amax(-1) > wrong.amax(-1)).to(logits.scalar_type()),
                        at::cat({right, wrong}, -1));
    }
    case Kind::divergence: {
      const auto log_q = reference_V.log_softmax(-1);
      return torch::where(log_q.isneginf(), 0, log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1);
    }
    case Kind::js_divergence:
      return js_divergence(logits.log_softmax(-1), reference_V.log_softmax(-1));
  }
  return {};
}

}  // namespace

std::string metric_name(Kind kind) {
  return std::string(info(kind).name);
}

Kind metric_kind(const std::string& name) {
  const auto* found = std::ranges::find(kKinds, name, &KindInfo::name);
  std::string known;
  for (const auto& kind : kKinds) known += concat(known.empty() ? "" : ", ", kind.name);
  check<std::invalid_argument>(found != kKinds.end(), "metric: known kinds are ", known, "; got '", name,
                               "'");
  return found->kind;
}

void check_has_gradient(const std::string& who, const Metric& metric, const std::string& instead) {
  for (const auto& term : metric.terms)
    check<std::invalid_argument>(term.kind != Kind::rank && term.kind != Kind::accuracy, who, ": ",
                                 metric_name(term.kind), " has no gradient; use ", instead);
}

MetricReads reads_of(const Metric& metric, int64_t n_tokens, int64_t d_vocab) {
  check<std::invalid_argument>(!metric.terms.empty(), "metric: at least one term is needed, got none");
  std::set<int64_t> positions, vocab;
  bool whole_vocab = false;
  MetricReads out;
  for (const auto& term : metric.terms) {
    check_term(term, n_tokens, d_vocab);
    positions.insert(resolved(term.position, n_tokens));
    vocab.insert(term.right.begin(), term.right.end());
    vocab.insert(term.wrong.begin(), term.wrong.end());
    whole_vocab |= info(term.kind).whole_vocab;
    out.needs_reference |= info(term.kind).has_reference && !term.reference_V.defined();
  }
  out.positions.assign(positions.begin(), positions.end());
  for (const auto& term : metric.terms) {
    const auto at = std::ranges::lower_bound(out.positions, resolved(term.position, n_tokens));
    out.rows.push_back(static_cast<size_t>(at - out.positions.begin()));
  }
  if (!whole_vocab) out.vocab_ids = torch::tensor(Ids(vocab.begin(), vocab.end()), torch::kLong);
  return out;
}

torch::Tensor evaluate(const Metric& metric, const MetricReads& reads, const torch::Tensor& logits,
                       const torch::Tensor& reference_PV) {
  const auto n_positions = static_cast<int64_t>(reads.positions.size());
  check<ShapeError>(logits.dim() >= 2 && logits.size(-2) == n_positions &&
                        (!reads.vocab_ids.defined() || logits.size(-1) == reads.vocab_ids.size(0)),
                    "metric: logits must be [..., ", n_positions, ", ",
                    reads.vocab_ids.defined() ? concat(reads.vocab_ids.size(0)) : std::string("d_vocab"),
                    "], got ", logits.sizes());
  torch::Tensor sum;
  for (size_t t = 0; t < metric.terms.size(); ++t) {
    const auto& term = metric.terms[t];
    const auto row = static_cast<int64_t>(reads.rows.at(t));
    auto reference_V = term.reference_V;
    if (info(term.kind).has_reference && !reference_V.defined()) {
      check<std::invalid_argument>(reference_PV.defined(), "metric ", info(term.kind).name,
                                   ": the clean run's logits are needed, got none");
      reference_V = reference_PV[row];
    }
    if (reference_V.defined()) reference_V = reference_V.to(logits.device(), logits.scalar_type());
    const auto value = term.weight * value_of(term, reads, logits.select(-2, row), reference_V);
    sum = sum.defined() ? sum + value : value;
  }
  return sum;
}

torch::Tensor of_logits(const Metric& metric, const torch::Tensor& logits,
                        const torch::Tensor& reference_TV) {
  check<ShapeError>(logits.dim() >= 2, "metric: logits must be [..., positions, d_vocab], got ",
                    logits.sizes());
  const auto reads = reads_of(metric, logits.size(-2), logits.size(-1));
  const auto positions = on_device(reads.positions, logits.device());
  auto read = logits.index_select(-2, positions);
  if (reads.vocab_ids.defined()) read = read.index_select(-1, on_device(reads.vocab_ids, logits.device()));
  torch::Tensor reference_PV;
  if (reference_TV.defined())
    reference_PV = reference_TV.index_select(-2, positions.to(reference_TV.device()));
  return evaluate(metric, reads, read, reference_PV);
}

}  // namespace introspect::analysis
