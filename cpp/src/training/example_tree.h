#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/engine/token_trie.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/models/model.h"
#include "introspect/training/lora_trainer.h"

namespace introspect::training {

/// Examples as one token tree: a node is a token with what is added there, so equal beginnings are one path.
class ExampleTree {
 public:
  /// Throws as LoraTrainer's constructor does.
  /// `who` begins its messages.
  ExampleTree(const models::Model& model, const std::vector<LoraExample>& examples, const std::string& who);

  int64_t n_examples() const { return static_cast<int64_t>(n_targets_.size()); }
  int64_t n_nodes() const { return tree_.size(); }
  int64_t n_tokens() const;  ///< of all examples, each by itself
  int64_t n_targets(int64_t example) const { return n_targets_[static_cast<size_t>(example)]; }

  /// Some examples on their own.
  struct Part {
    torch::Tensor nodes;    // int64 [N]: in the whole tree, in ascending order, so that parents come first
    torch::Tensor tokens;   // int64 [1, N]
    torch::Tensor parents;  // int64 [N], within the part
    torch::Tensor reads;    // int64 [n]: places in the part after which a target token comes
    torch::Tensor labels;   // int64 [n]: that token
  };
  Part part(const std::vector<int64_t>& examples) const;

  /// What is added to the outputs of blocks [first, last) at a part's nodes, as a registry; empty if nothing is.
  hooks::HookRegistry additions(const models::Model& model, const Part& part, int64_t first,
                                int64_t last) const;

  /// Examples cut into groups of at most `most` nodes each (one example at least), neighbours in the tree together.
  std::vector<std::vector<int64_t>> groups(std::vector<int64_t> examples, int64_t most) const;

  /// Examples that stand one after another and share an injection, and so most of their work.
  const std::vector<std::vector<int64_t>>& units() const { return units_; }

  /// Hex SHA-256 of all examples.
  const std::string& hash() const { return hash_; }

 private:
  using Added = std::map<int64_t, torch::Tensor>;

  std::vector<std::vector<int64_t>> symbols(const models::Model& model,
                                            const std::vector<LoraExample>& examples, const std::string& who);

  std::string who_;
  int64_t d_vocab_;
  std::vector<Added> added_;  // distinct ones; the first adds nothing
  std::vector<std::vector<int64_t>> labels_;
  std::vector<int64_t> n_targets_;
  std::vector<std::vector<int64_t>> units_;
  std::string hash_;
  engine::TokenTrie tree_;  // of token + d_vocab * number in added_; made last, from the above
};

}  // namespace introspect::training
