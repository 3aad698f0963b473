#include "introspect/experiments/answers.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "experiments/text_tree.h"

namespace introspect::experiments {
namespace {

using Ids = std::vector<int64_t>;

bool begins_with(const Ids& ids, const Ids& start) {
  return start.size() < ids.size() && std::equal(start.begin(), start.end(), ids.begin());
}

/// The longest of the sequences that this one goes on from; -1 if there is none.
int64_t longest_beginning(const std::vector<Answers::Sequence>& sequences, const Ids& ids) {
  int64_t found = -1;
  for (size_t i = 0; i < sequences.size(); ++i)
    if (begins_with(ids, sequences[i].ids) &&
        (found < 0 || sequences[i].ids.size() > sequences[static_cast<size_t>(found)].ids.size()))
      found = static_cast<int64_t>(i);
  return found;
}

}  // namespace

Answers::Answers(const AnswerTexts& texts, const text::Tokenizer& tokenizer) {
  check<ConfigError>(!texts.empty(), "answers: there must be a label, got none");
  std::map<Ids, size_t> label_of;  // the shorter ones first
  for (const auto& [label, spellings] : texts) {
    check<ConfigError>(!label.empty(), "answers: a label must be a text, got an empty one");
    check<ConfigError>(std::find(labels_.begin(), labels_.end(), label) == labels_.end(), "answers: label '",
                       label, "' must stand there once, got it twice");
    check<ConfigError>(!spellings.empty(), "answers: label '", label, "' must have a text, got none");
    for (const auto& text : spellings) {
      auto ids = tokenizer.encode(text, /*add_special_tokens=*/false);
      check<ConfigError>(!ids.empty(), "answers: a text must have a token, got '", text, "' of label '",
                         label, "'");
      const auto [place, is_new] = label_of.emplace(std::move(ids), labels_.size());
      check<ConfigError>(is_new || place->second == labels_.size(), "answers: '", text,
                         "' must stand under one label, got it under '", texts[place->second].first,
                         "' and '", label, "'");
    }
    labels_.push_back(label);
  }
  std::vector<Sequence> by_length;
  for (const auto& [ids, label] : label_of) by_length.push_back({ids, label, -1});
  std::stable_sort(by_length.begin(), by_length.end(),
                   [](const auto& a, const auto& b) { return a.ids.size() < b.ids.size(); });
  for (auto& sequence : by_length) {
    sequence.within = longest_beginning(sequences_, sequence.ids);
    const bool adds =
        sequence.within < 0 || sequences_[static_cast<size_t>(sequence.within)].label != sequence.label;
    if (adds) sequences_.push_back(std::move(sequence));
  }
}

std::vector<Ids> Answers::ids() const {
  std::vector<Ids> out;
  for (const auto& sequence : sequences_) out.push_back(sequence.ids);
  return out;
}

std::vector<double> Answers::shares(const std::vector<double>& probabilities) const {
  check<std::invalid_argument>(probabilities.size() == sequences_.size(), "answers: there must be ",
                               sequences_.size(), " probabilities, got ", probabilities.size());
  std::vector<double> out(labels_.size(), 0.0);
  for (size_t i = 0; i < sequences_.size(); ++i) {
    out[sequences_[i].label] += probabilities[i];
    if (sequences_[i].within >= 0)
      out[sequences_[static_cast<size_t>(sequences_[i].within)].label] -= probabilities[i];
  }
  for (auto& share : out)
    if (share < 0) share = 0;  // rounding: the longer one may have all that the shorter one has
  return out;
}

torch::Tensor answer_shares(const graph::ModelPtr& model, const std::vector<AnswerPrompt>& prompts,
                            const Answers& answers, const graph::RunOptions& options) {
  check<std::invalid_argument>(!prompts.empty(), "answer_shares: there must be a prompt, got none");
  const auto& sequences = answers.sequences();
  const TextTree tree(answers.ids());
  size_t longest = 0;
  for (const auto& path : tree.paths()) longest = std::max(longest, path.size());

  struct Use {
    size_t prompt;
    size_t path;  // n_paths: none, the end of the prompt
  };
  const auto n = sequences.size(), n_paths = tree.paths().size();
  graph::Graph graph;
  std::map<graph::ReadId, std::vector<Use>> uses;
  for (size_t p = 0; p < prompts.size(); ++p) {
    const auto& prompt = prompts[p];
    check<ShapeError>(static_cast<int64_t>(prompt.ids.size() + longest) <= model->cfg().n_ctx,
                      "answer_shares: prompt ", p, " (", prompt.ids.size(), " tokens) and an answer of ",
                      longest + 1, " must fit into the model's ", model->cfg().n_ctx, " positions");
    const auto node = graph.segment(model, prompt.ids, {}, prompt.interventions);
    graph::Read read;
    read.layers = {model->cfg().n_layers - 1};
    uses[graph.read(node, read)].push_back({p, n_paths});
    for (size_t i = 0; i < n_paths; ++i) {
      const auto& path = tree.paths()[i];
      read.positions.resize(path.size());
      std::iota(read.positions.begin(), read.positions.end(), int64_t{0});
      uses[graph.read(graph.segment(model, path, node), read)].push_back({p, i});
    }
  }

  struct Prompt {
    std::vector<torch::Tensor> resid_TD;  // of every path, and last at the end of the prompt
    size_t n_missing;
  };
  std::vector<Prompt> read_of(prompts.size(), {std::vector<torch::Tensor>(n_paths + 1), n_paths + 1});
  std::vector<std::vector<double>> log_probs(prompts.size());
  const auto finish = [&](size_t p) {
    auto resid_TD = std::exchange(read_of[p].resid_TD, {});
    const auto logits_V = model->readout(resid_TD.back()[-1]).to(torch::kCPU, torch::kFloat64);
    resid_TD.pop_back();
    const auto log_total = logits_V.logsumexp({0}).item<double>();
    check<Error>(std::isfinite(log_total), "answer_shares: logits must be finite, got others after prompt ",
                 p);
    log_probs[p] = tree.rest_log_probs(*model, resid_TD);
    for (size_t i = 0; i < n; ++i)
      log_probs[p][i] += logits_V[sequences[i].ids[0]].item<double>() - log_total;
  };
  graph.run(options, [&](const std::vector<std::pair<graph::ReadId, engine::Captured>>& read) {
    for (const auto& [id, captured] : read)
      for (const auto& use : uses.at(id)) {
        auto& prompt = read_of[use.prompt];
        prompt.resid_TD[use.path] = captured.values.select(1, 0);
        if (--prompt.n_missing == 0) finish(use.prompt);
      }
  });

  const auto out = torch::empty(
      {static_cast<int64_t>(prompts.size()), static_cast<int64_t>(answers.labels().size())}, torch::kFloat64);
  for (size_t p = 0; p < prompts.size(); ++p) {
    std::vector<double> probabilities(n);
    for (size_t i = 0; i < n; ++i) probabilities[i] = std::exp(log_probs[p][i]);
    out[static_cast<int64_t>(p)].copy_(torch::tensor(answers.shares(probabilities), torch::kFloat64));
  }
  return out;
}

}  // namespace introspect::experiments
