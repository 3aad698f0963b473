#include "introspect/analysis/probe_study.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

#include <torch/types.h>

#include "analysis/probe_scores.h"
#include "introspect/analysis/cross_validation.h"
#include "introspect/core/check.h"

#include "core/parallel.h"
#include "statistics/samples.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;
using Labels = std::vector<int64_t>;

constexpr double kSearchTolerance =
    1e-4;  // of cross-validated fits in float32: scores move by hundredths, AUCs by 1e-3
constexpr int64_t kMostColumns = 1024;  // of one solution: [N, columns] must stay in the cache
constexpr int kMostShuffles = 100;      // that leave some fold without a class, one after another
constexpr std::array kBlocks = {.001,  .002, .004, .008, .016, .032,
                                .0625, .125, .25,  .5,   1.0};  // Voita & Titov

double tolerance_for(const Tensor& x_ND) {
  return x_ND.scalar_type() == torch::kFloat64 ? 1e-8 : kSearchTolerance;
}

void shuffle(std::vector<size_t>& places, std::mt19937_64& generator) {
  for (size_t i = places.size(); i > 1; --i)
    std::swap(places[i - 1], places[statistics::draw_below(generator, i)]);
}

std::map<int64_t, std::vector<size_t>> members(const std::vector<int64_t>& groups) {
  std::map<int64_t, std::vector<size_t>> out;
  for (size_t i = 0; i < groups.size(); ++i) out[groups[i]].push_back(i);
  return out;
}

/// The labels in another order: within groups, or of whole groups where each has one class.
Labels shuffled(const ProbeLabels& of, std::mt19937_64& generator) {
  auto out = of.labels;
  const auto groups = members(of.groups.empty() ? Labels(of.labels.size(), 0) : of.groups);
  const bool one_class_each = std::ranges::all_of(groups, [&](const auto& group) {
    return std::ranges::all_of(group.second,
                               [&](size_t i) { return of.labels[i] == of.labels[group.second[0]]; });
  });
  if (!one_class_each) {
    for (const auto& [name, texts] : groups) {
      auto order = texts;
      shuffle(order, generator);
      for (size_t i = 0; i < texts.size(); ++i) out[texts[i]] = of.labels[order[i]];
    }
    return out;
  }
  std::vector<size_t> order(groups.size());
  std::iota(order.begin(), order.end(), size_t{0});
  shuffle(order, generator);
  std::vector<int64_t> classes;
  for (const auto& [name, texts] : groups) classes.push_back(of.labels[texts[0]]);
  size_t next = 0;
  for (const auto& [name, texts] : groups) {
    for (const size_t i : texts) out[i] = classes[order[next]];
    ++next;
  }
  return out;
}

/// Whether every class has texts outside of each fold, and of each two folds if some C is to be chosen.
bool can_be_learned(const Labels& labels, const ProbeLabels& of, bool without_pairs) {
  const int64_t F = *std::ranges::max_element(of.folds) + 1;
  std::vector<std::vector<int64_t>> counts(static_cast<size_t>(of.n_classes),
                                           std::vector<int64_t>(static_cast<size_t>(F)));
  for (size_t i = 0; i < labels.size(); ++i)
    ++counts[static_cast<size_t>(labels[i])][static_cast<size_t>(of.folds[i])];
  return std::ranges::all_of(counts, [&](const auto& of_class) {
    const auto total = std::accumulate(of_class.begin(), of_class.end(), int64_t{0});
    auto sorted = of_class;
    std::ranges::sort(sorted, std::greater<>());
    return total > sorted[0] + (without_pairs ? sorted[1] : 0);
  });
}

/// A class at random for each type, as often as among the labels.
std::optional<Labels> control_labels(const ProbeLabels& of, bool without_pairs, std::mt19937_64& generator) {
  const auto types = members(of.types);
  if (types.size() < 2) return std::nullopt;
  for (int i = 0; i < kMostShuffles; ++i) {
    Labels out(of.labels.size());
    for (const auto& [type, texts] : types) {
      const int64_t label = of.labels[statistics::draw_below(generator, of.labels.size())];
      for (const size_t text : texts) out[text] = label;
    }
    if (can_be_learned(out, of, without_pairs)) return out;
  }
  return std::nullopt;
}

/// Whatever is the same at all layers.
struct Setup {
  ProbeFitOptions fit;
  Tensor rows_MN;              // all but fold f; then all but folds f and g; float order of `pairs`
  Tensor labels_YN;            // the true ones, the nulls', the control task's
  std::vector<Labels> labels;  // the same as numbers
  std::map<std::pair<int64_t, int64_t>, int64_t> pairs;  // two folds -> their set of rows
  int64_t n_folds = 0, n_nulls = 0;
  std::optional<int64_t> control;  // its place among the labels
  std::vector<size_t> order;       // of the texts, for the description length
};

Tensor as_tensor(const std::vector<Labels>& rows) {
  std::vector<Tensor> out;
  for (const auto& row : rows) out.push_back(torch::tensor(row, torch::kInt64));
  return at::stack(out);
}

Setup prepare(const ProbeLabels& of, const ProbeStudyOptions& options) {
  Setup out;
  out.fit = {options.kind, options.C.front(), options.standardise};
  out.n_folds = *std::ranges::max_element(of.folds) + 1;
  out.n_nulls = options.nulls;
  const bool chooses = options.C.size() > 1;
  check<std::invalid_argument>(!chooses || out.n_folds >= 3,
                               "probes: choosing C wants three folds or more, got ", out.n_folds);
  check<std::invalid_argument>(
      can_be_learned(of.labels, of, chooses),
      "probes: every class must have texts outside of each two folds, among which C is "
      "chosen: fewer folds, or one C");
  const auto folds_N = torch::tensor(of.folds, torch::kInt64);
  std::vector<Tensor> rows;
  for (int64_t f = 0; f < out.n_folds; ++f) rows.push_back(folds_N != f);
  for (int64_t f = 0; chooses && f < out.n_folds; ++f)
    for (int64_t g = f + 1; g < out.n_folds; ++g) {
      out.pairs[{f, g}] = out.pairs[{g, f}] = static_cast<int64_t>(rows.size());
      rows.push_back((folds_N != f).logical_and(folds_N != g));
    }
  out.rows_MN = at::stack(rows);

  std::mt19937_64 generator(options.seed);
  out.labels = {of.labels};
  for (int64_t n = 0; n < options.nulls; ++n) {
    Labels drawn;
    int tries = 0;
    do {
      check<std::invalid_argument>(
          tries++ < kMostShuffles,
          "probes: shuffled labels must leave every class in each fold's rest, and hardly "
          "ever do: fewer folds, more texts, or nulls=0");
      drawn = shuffled(of, generator);
    } while (!can_be_learned(drawn, of, chooses));
    out.labels.push_back(std::move(drawn));
  }
  if (!of.types.empty())
    if (auto control = control_labels(of, chooses, generator)) {
      out.control = static_cast<int64_t>(out.labels.size());
      out.labels.push_back(std::move(*control));
    }
  out.labels_YN = as_tensor(out.labels);

  // Groups stay together, so that a block is new to the probe of those before it.
  const auto groups = members(of.groups.empty() ? [&] {
    Labels each(of.labels.size());
    std::iota(each.begin(), each.end(), int64_t{0});
    return each;
  }()
                                                : of.groups);
  std::vector<const std::vector<size_t>*> in_order;
  for (const auto& [name, texts] : groups) in_order.push_back(&texts);
  std::vector<size_t> places(in_order.size());
  std::iota(places.begin(), places.end(), size_t{0});
  shuffle(places, generator);
  for (const size_t place : places)
    out.order.insert(out.order.end(), in_order[place]->begin(), in_order[place]->end());
  return out;
}

/// fit_problems, some columns at a time.
ProbeWeights fit(const Tensor& x_ND, const Setup& setup, const ProbeProblems& all) {
  const auto most = static_cast<size_t>(std::max<int64_t>(1, kMostColumns / all.n_classes));
  std::vector<Tensor> weights, bias;
  for (size_t first = 0; first < all.problems.size(); first += most) {
    const auto last = std::min(first + most, all.problems.size());
    const ProbeProblems some{all.rows_MN,
                             all.labels_YN,
                             {all.problems.begin() + static_cast<std::ptrdiff_t>(first),
                              all.problems.begin() + static_cast<std::ptrdiff_t>(last)},
                             all.n_classes};
    auto fitted = fit_problems(x_ND, some, setup.fit, tolerance_for(x_ND));
    weights.push_back(fitted.weights_PKD);
    bias.push_back(fitted.bias_PK);
  }
  return {at::cat(weights), at::cat(bias)};
}

/// Held-out scores of every set of labels [Y, N, K], the C that all texts choose, and the fit on all of them.
struct HeldOut {
  Tensor scores_YNK;
  double C = 0;
  ProbeWeights all;
};

HeldOut cross_validate(const Tensor& x_ND, const Setup& setup, int64_t n_classes, const Labels& folds,
                       const std::vector<double>& C) {
  const int64_t Y = setup.labels_YN.size(0), F = setup.n_folds, n_C = static_cast<int64_t>(C.size());
  const int64_t N = x_ND.size(0), M = setup.rows_MN.size(0);
  // Problems in the order [C, rows, labels], so that those of one C stand together.
  ProbeProblems problems{setup.rows_MN, setup.labels_YN, {}, n_classes};
  for (const double one : C)
    for (int64_t m = 0; m < M; ++m)
      for (int64_t y = 0; y < Y; ++y) problems.problems.push_back({m, y, one});
  // Then the true labels on all texts, which the fit in float64 begins with.
  problems.rows_MN = at::cat({setup.rows_MN, torch::ones({1, N}, torch::kBool)});
  for (const double one : C) problems.problems.push_back({M, 0, one});
  const auto fitted = fit(x_ND, setup, problems);
  const auto folds_N = torch::tensor(folds, torch::kInt64);
  const auto mean_D = x_ND.to(torch::kFloat64).mean(0);
  const auto centred_ND = x_ND - mean_D.to(x_ND.scalar_type());
  const auto cross = fitted.weights_PKD.slice(0, 0, n_C * M * Y);
  const auto weights_CMYKD = cross.view({n_C, M, Y, -1, x_ND.size(1)});
  const auto bias_CMYK =
      (fitted.bias_PK.slice(0, 0, n_C * M * Y) + cross.matmul(mean_D)).view({n_C, M, Y, -1});
  const int64_t K = bias_CMYK.size(3);

  /// Scores [C, Y, n, K] of a fold's texts by the probes of a set of rows.
  std::vector<Tensor> texts_of;
  for (int64_t f = 0; f < F; ++f) texts_of.push_back((folds_N == f).nonzero().flatten());
  const auto scores = [&](int64_t rows, int64_t fold) {
    const auto x_nD = centred_ND.index_select(0, texts_of[static_cast<size_t>(fold)]);
    const auto w_QD = weights_CMYKD.select(1, rows).reshape({-1, x_ND.size(1)}).to(x_nD.scalar_type());
    const auto out = x_nD.mm(w_QD.t()).to(torch::kFloat64).t().reshape({n_C, Y, K, -1}).transpose(2, 3);
    return out + bias_CMYK.select(1, rows).unsqueeze(2);
  };
  const auto loss = [&](const Tensor& scores_CYnK, int64_t fold) {  // summed, [C, Y]
    const auto labels_Yn = setup.labels_YN.index_select(1, texts_of[static_cast<size_t>(fold)]);
    const auto flat =
        losses(scores_CYnK.reshape({-1, K}), labels_Yn.expand({n_C, Y, -1}).reshape({-1}), setup.fit.kind);
    return flat.view({n_C, Y, -1}).sum(2);
  };

  HeldOut out{torch::zeros({Y, N, K}, torch::kFloat64), C.front(), {}};
  auto total_C = torch::zeros({n_C}, torch::kFloat64);
  for (int64_t f = 0; f < F; ++f) {
    const auto scores_CYnK = scores(f, f);
    auto best_Y = torch::zeros({Y}, torch::kInt64);
    if (n_C > 1) {
      auto chosen_by_CY = torch::zeros({n_C, Y}, torch::kFloat64);
      for (int64_t g = 0; g < F; ++g)
        if (g != f) chosen_by_CY += loss(scores(setup.pairs.at({f, g}), g), g);
      best_Y = chosen_by_CY.argmin(0);
      total_C += loss(scores_CYnK, f).select(1, 0);
    }
    const auto place = best_Y.view({1, Y, 1, 1}).expand({1, Y, scores_CYnK.size(2), K});
    out.scores_YNK.index_copy_(1, texts_of[static_cast<size_t>(f)], scores_CYnK.gather(0, place).squeeze(0));
  }
  const int64_t best = n_C > 1 ? total_C.argmin().item<int64_t>() : 0;
  out.C = C[static_cast<size_t>(best)];
  const int64_t place = n_C * M * Y + best;
  out.all = {fitted.weights_PKD.slice(0, place, place + 1), fitted.bias_PK.slice(0, place, place + 1)};
  return out;
}

/// Bits of the online code: what a block costs by the probe of all before it.
double description_bits(const Tensor& x_ND, const Setup& setup, const Labels& labels, int64_t n_classes,
                        double C) {
  std::vector<int64_t> order(setup.order.begin(), setup.order.end());
  const auto order_N = torch::tensor(order, torch::kInt64);
  const auto x_sorted = x_ND.index_select(0, order_N);
  const auto y_N = torch::tensor(labels, torch::kInt64).index_select(0, order_N);
  const int64_t N = x_ND.size(0);
  const double bits_each = std::log2(static_cast<double>(n_classes));
  auto options = setup.fit;
  options.C = C;
  double bits = 0;
  int64_t known = 0;
  for (const double share : kBlocks) {
    const int64_t last = std::max<int64_t>(1, std::llround(share * static_cast<double>(N)));
    if (last <= known) continue;
    const auto y_n = y_N.slice(0, 0, known);
    if (known == 0 || std::get<0>(at::_unique(y_n)).size(0) < n_classes) {
      bits += static_cast<double>(last - known) * bits_each;
    } else {
      const auto x_nD = x_sorted.slice(0, 0, known);
      const auto fitted = fit_problems(
          x_nD, {torch::ones({1, known}, torch::kBool), y_n.unsqueeze(0), {{0, 0, C}}, n_classes}, options,
          tolerance_for(x_ND));
      const auto block = x_sorted.slice(0, known, last).to(torch::kFloat64);
      const auto scores = block.mm(fitted.weights_PKD[0].t()) + fitted.bias_PK[0];
      bits += losses(scores, y_N.slice(0, known, last), options.kind).sum().item<double>() / std::log(2.0);
    }
    known = last;
  }
  return bits;
}

ProbeStudy study(const Tensor& x_ND, const Setup& setup, const std::vector<std::string>& classes,
                 const ProbeLabels& of, const ProbeStudyOptions& options) {
  const auto held_out = cross_validate(x_ND, setup, of.n_classes, of.folds, options.C);
  ProbeStudy out;
  out.held_out = held_out.scores_YNK[0];
  out.scores = judge_with_intervals(out.held_out, of.labels, of.n_classes, of.folds, of.groups, options.kind,
                                    {options.confidence, options.resamples, options.seed});
  if (out.held_out.size(1) == 1) out.held_out = out.held_out.squeeze(1);
  const auto judged = [&](int64_t y) {
    return judge(held_out.scores_YNK[y], setup.labels[static_cast<size_t>(y)], of.n_classes, of.folds,
                 options.kind);
  };
  for (int64_t n = 1; n <= setup.n_nulls; ++n) {
    const auto null = judged(n);
    out.null_accuracy.push_back(null.accuracy);
    out.null_auc.push_back(null.auc);
  }
  if (setup.control) out.control_accuracy = judged(*setup.control).accuracy;
  if (options.description && has_probabilities(options.kind)) {
    const double bits = description_bits(x_ND, setup, of.labels, of.n_classes, held_out.C);
    out.description_bits = bits;
    out.compression = static_cast<double>(x_ND.size(0)) * std::log2(static_cast<double>(of.n_classes)) / bits;
  }
  auto fit_all = setup.fit;
  fit_all.C = held_out.C;
  out.probe = fit_probe(x_ND, of.labels, classes, fit_all, held_out.all);
  return out;
}

void check_inputs(const Tensor& values_NLD, const std::vector<std::string>& classes, const ProbeLabels& of,
                  const ProbeStudyOptions& options) {
  check<ShapeError>(values_NLD.dim() == 3 && values_NLD.is_floating_point() && values_NLD.numel() > 0,
                    "probes: activations must be [texts, layers, D] of a float dtype, got ",
                    values_NLD.sizes());
  const auto N = static_cast<size_t>(values_NLD.size(0));
  check<ShapeError>(of.labels.size() == N, "probes: every text must have a label, got ", of.labels.size(),
                    " labels for ", N, " texts");
  check<std::invalid_argument>(of.groups.empty() || of.groups.size() == N,
                               "probes: every text must have one group, got ", of.groups.size(), " for ", N);
  check<std::invalid_argument>(of.types.empty() || of.types.size() == N,
                               "probes: every text must have one type, got ", of.types.size(), " for ", N);
  check<std::invalid_argument>(of.n_classes >= 2 && static_cast<size_t>(of.n_classes) == classes.size(),
                               "probes: there must be two classes or more, each with a name");
  for (const int64_t label : of.labels)
    check<std::invalid_argument>(label >= 0 && label < of.n_classes, "probes: labels must be 0 to ",
                                 of.n_classes - 1, ", got ", label);
  check<std::invalid_argument>(std::set<int64_t>(of.labels.begin(), of.labels.end()).size() == classes.size(),
                               "probes: every class must have a text");
  check_folds(of.folds, of.labels);
  check<std::invalid_argument>(!options.C.empty(), "probes: there must be a C, got none");
  check<std::invalid_argument>(options.nulls >= 0, "probes: nulls must not be negative, got ", options.nulls);
  for (const double C : options.C)
    check<std::invalid_argument>(std::isfinite(C) && C > 0, "probes: C must be finite and above 0, got ", C);
  const auto finite_NL = values_NLD.isfinite().all(2);
  if (!finite_NL.all().item<bool>()) {
    const auto first = finite_NL.logical_not().nonzero()[0];
    throw std::invalid_argument(concat("probes: the activations must be finite, and those of text ",
                                       first[0].item<int64_t>(), " at layer number ",
                                       first[1].item<int64_t>(), " are not"));
  }
}

}  // namespace

std::vector<ProbeStudy> study_probes(const Tensor& values_NLD, const std::vector<std::string>& classes,
                                     const ProbeLabels& labels, const ProbeStudyOptions& options) {
  const torch::NoGradGuard no_grad;
  check_inputs(values_NLD, classes, labels, options);
  const auto setup = prepare(labels, options);
  const auto L = static_cast<size_t>(values_NLD.size(1));
  std::vector<ProbeStudy> out(L);
  const auto at_once = static_cast<size_t>(std::max(1, at::get_num_threads()));
  for (size_t first = 0; first < L; first += at_once) {
    report(options.progress, "probes", static_cast<int64_t>(first), static_cast<int64_t>(L));
    const auto last = std::min(L, first + at_once);
    parallel_for(static_cast<int64_t>(first), static_cast<int64_t>(last), 1, [&](int64_t begin, int64_t end) {
      for (int64_t layer = begin; layer < end; ++layer)
        out[static_cast<size_t>(layer)] =
            study(values_NLD.select(1, layer).contiguous(), setup, classes, labels, options);
    });
  }
  report(options.progress, "probes", static_cast<int64_t>(L), static_cast<int64_t>(L));
  return out;
}

}  // namespace introspect::analysis
