#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::analysis {

/// One number of a run's logits at one position. `right` and `wrong` are token ids; a set is one answer written in several
/// ways.
///
///     logit_difference        mean logit of `right` - mean logit of `wrong`
///     log_probability         log of the sum of p over `right`, in nats
///     probability             sum of p over `right`
///     probability_difference  sum of p over `right` - sum of p over `wrong` (Hanna et al. 2023's greater-than)
///     rank                    of the token in `right`, from 1, the most likely one
///     accuracy                1 if the largest logit of `right` and `wrong` is one of `right`, or else 0
///     divergence              KL(reference || p) over the vocabulary, in nats (Conmy et al. 2023 minimise it)
///     js_divergence           Jensen-Shannon divergence of reference and p, in nats: at most log 2
struct MetricTerm {
  enum class Kind : uint8_t {
    logit_difference,
    log_probability,
    probability,
    probability_difference,
    rank,
    accuracy,
    divergence,
    js_divergence,
  };

  Kind kind = Kind::logit_difference;
  std::vector<int64_t> right, wrong;
  int64_t position = -1;      ///< of the prompt; negative: from its end
  torch::Tensor reference_V;  ///< logits or log-probabilities; undefined: those of the clean run
  double weight = 1;
};

/// A metric of a run of one prompt, as data: the weighted sum of its terms. It names what it needs of the logits, so that
/// only these are computed.
struct Metric {
  std::vector<MetricTerm> terms;
};

/// What a metric reads of a run.
struct MetricReads {
  std::vector<int64_t> positions;  ///< P of them, ascending, from 0
  std::vector<size_t> rows;        ///< of each term: its place among them
  torch::Tensor vocab_ids;         ///< int64 [n], ascending: these rows of the unembedding; undefined: all
  bool needs_reference = false;    ///< the clean run's logits at these positions
};

INTROSPECT_EXPORT std::string metric_name(MetricTerm::Kind kind);
/// Throws std::invalid_argument, listing the known ones, if there is none.
INTROSPECT_EXPORT MetricTerm::Kind metric_kind(const std::string& name);

/// Throws std::invalid_argument for ranks and accuracies, which no gradient leads through; `instead` says what works.
INTROSPECT_EXPORT void check_has_gradient(const std::string& who, const Metric& metric,
                                          const std::string& instead);

/// What a metric reads of a run of `n_tokens`.
///
/// Throws std::invalid_argument for a metric without terms, a term without the tokens that it needs or a weight that is not
/// finite, std::out_of_range for tokens or positions that are not there, ShapeError for a reference that is not [V].
INTROSPECT_EXPORT MetricReads reads_of(const Metric& metric, int64_t n_tokens, int64_t d_vocab);

/// The metric of logits [..., P, n], float32 or float64, at what `reads` names; gradients flow through all kinds but rank
/// and accuracy.
///
/// reference_PV: of the clean run, [P, V], where a term has none of its own. Returns [...], in the dtype of the logits.
/// Throws ShapeError for logits of another shape, std::invalid_argument for a reference that is needed and not there.
INTROSPECT_EXPORT torch::Tensor evaluate(const Metric& metric, const MetricReads& reads,
                                         const torch::Tensor& logits, const torch::Tensor& reference_PV = {});

/// The same of whole logits [..., T, V] of a prompt; reference_TV those of the clean run. Throws as both.
INTROSPECT_EXPORT torch::Tensor of_logits(const Metric& metric, const torch::Tensor& logits,
                                          const torch::Tensor& reference_TV = {});

}  // namespace introspect::analysis
