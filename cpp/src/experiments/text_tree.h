#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/models/model.h"

namespace introspect::experiments {

/// Texts in tokens, as a tree: what several of them begin with is run and read out once.
///
/// A text's tokens after its first one are read after its beginnings (its first token, its first two, ...). A beginning
/// that no other one goes on from is a path: running the paths runs all beginnings.
class TextTree {
 public:
  explicit TextTree(const std::vector<std::vector<int64_t>>& texts);

  /// What is to be run after the prompt; none where all texts are of one token.
  const std::vector<std::vector<int64_t>>& paths() const { return paths_; }
  /// How many beginnings there are: rows of logits.
  int64_t n_beginnings() const { return static_cast<int64_t>(rows_.size()); }

  /// The log-probability, in nats, of every text's tokens after its first one: 0 of one token.
  ///
  /// resid_TD: of every path the last residuals after each of its tokens [T, D].
  std::vector<double> rest_log_probs(const models::Model& model,
                                     const std::vector<torch::Tensor>& resid_TD) const;

 private:
  struct Next {
    size_t text;
    int64_t id;
  };
  struct Row {  // a beginning
    size_t path;
    int64_t position;
    std::vector<Next> next;  // what the texts have after it
  };
  std::vector<std::vector<int64_t>> paths_;
  std::vector<Row> rows_;
  size_t n_texts_;
};

}  // namespace introspect::experiments
