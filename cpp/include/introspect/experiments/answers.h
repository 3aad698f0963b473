#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/graph/graph.h"
#include "introspect/text/tokenizer.h"

namespace introspect::experiments {

/// What may be said, and what each text of it counts as: {"cat", {" cat", " a cat"}}, {"refuses", {" I cannot"}}.
using AnswerTexts = std::vector<std::pair<std::string, std::vector<std::string>>>;

/// Answers as token sequences, made so that none is counted twice.
///
/// A text counts whatever follows it. Where one begins with another of a different label (" no", " not sure"), the longer
/// one is taken out of the shorter; of one label the longer one is part of the shorter and adds nothing. Each text is
/// counted in the tokens that the tokenizer makes of it: the same letters in other tokens are another answer, which models
/// hardly ever give.
class INTROSPECT_EXPORT Answers {
 public:
  /// Throws ConfigError for no labels, a label without texts, a text without tokens, and one text under two labels.
  Answers(const AnswerTexts& texts, const text::Tokenizer& tokenizer);

  struct Sequence {
    std::vector<int64_t> ids;
    size_t label = 0;
    int64_t within = -1;  ///< the longest other sequence that this one begins with
  };

  const std::vector<std::string>& labels() const { return labels_; }
  const std::vector<Sequence>& sequences() const { return sequences_; }
  std::vector<std::vector<int64_t>> ids() const;  ///< of every sequence

  /// The probability of each label, of those of the sequences.
  std::vector<double> shares(const std::vector<double>& probabilities) const;

 private:
  std::vector<std::string> labels_;
  std::vector<Sequence> sequences_;  // none begins with another of its own label
};

/// A prompt whose answer is read.
struct AnswerPrompt {
  std::vector<int64_t> ids;
  std::vector<hooks::Intervention> interventions = {};  ///< while the prompt runs; the answer is read without
};

/// The exact probability of every label after each prompt: [n_prompts, n_labels] in float64, from float32 logits (float64
/// of a float64 model). What is left to 1 is said by no text. Prompts, and answers that begin alike, run once.
///
/// Throws std::invalid_argument for no prompts, ShapeError for one that with the longest answer does not fit into n_ctx,
/// and as graph::Graph::segment does; Error for logits that are not finite.
INTROSPECT_EXPORT torch::Tensor answer_shares(const graph::ModelPtr& model,
                                              const std::vector<AnswerPrompt>& prompts,
                                              const Answers& answers, const graph::RunOptions& options = {});

}  // namespace introspect::experiments
