#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/sae/trainer.h"

#include "sae/training/entries.h"

namespace introspect::sae::training {

/// p_anneal as it stands: see p_anneal.cpp.
struct Annealing {
  double p = 1, next_p = 0;  // next_p counts once there was an update
  int64_t updates = 0;
  double factor = 1;                             // of the coefficient
  std::vector<std::pair<double, double>> queue;  // losses of p and of next_p, of the last 10 batches
};

/// One batch on its way through a dictionary and back: what goes in, and the losses and gradients that come out.
///
/// An objective is a function that calls encode, one of Entries, reconstruct, penalties of its own and encode_backward.
/// Everything is in the units of the normalised input.
struct Pass {
  Pass(const TrainerOptions& of, const DictionaryWeights& weights, std::vector<int64_t> widths)
      : options(of), w(weights), sites(std::move(widths)) {}

  const TrainerOptions& options;
  const DictionaryWeights& w;
  std::vector<int64_t> sites;  // widths of d_out's parts
  torch::Tensor x_ND, y_ND;    // inputs and targets, normalised
  torch::Tensor weight_N;      // of each row's squared error; undefined: 1
  torch::Tensor dead;          // int64: ids of dead features
  double coefficient = 0;      // of sparsity, warmed up
  /// Of a layer that writes the same outputs as others do: takes what it writes [N, D] and gives the gradient by it. The
  /// squared error, the residual and b_dec are then not the pass's own.
  std::function<torch::Tensor(Pass&, const torch::Tensor& written_ND)> shared;

  // What comes out
  DictionaryWeights gradient;  // undefined: zero
  double mse = 0, sparsity_loss = 0, aux_loss = 0;
  torch::Tensor fired_F;      ///< rows in which each feature is not 0, float64
  torch::Tensor residual_ND;  ///< y - x_hat
  double least_chosen = 0;    ///< batchtopk: the least of the chosen p n
  bool has_chosen = false;
  double power = 0, next_power = 0;  // p_anneal: the losses of p and next_p, without their coefficient

  int64_t n_rows() const { return x_ND.size(0); }
  double per_row() const { return 1.0 / static_cast<double>(n_rows()); }

  /// What the encoder is given: x less b_dec if that is subtracted.
  const torch::Tensor& encoded();
  /// encoded W_enc^T + b_enc (b_enc undefined: 0), [N, F].
  torch::Tensor pre_activations();
  /// Length of each decoder row, summed over the sites, [F].
  const torch::Tensor& norms();

  /// Counts what fired, decodes f, adds the squared error and its gradients but that through f, which is returned.
  torch::Tensor reconstruct(const Entries& at, const torch::Tensor& f);
  /// Adds mean |r|^2 of rows; the gradient by r [N, D].
  torch::Tensor squared_error(const torch::Tensor& r_ND, double& loss);
  void count_fired(const Entries& at, const torch::Tensor& f);
  /// x_hat less what is decoded: b_dec and the skip.
  torch::Tensor offset();
  /// Gradients of offset() for that of x_hat.
  void offset_backward(const torch::Tensor& g_ND);

  /// Adds the gradients of encoder weights, b_enc and, if it is subtracted, b_dec for that of p.
  void encode_backward(const Entries& at, const torch::Tensor& gp);
  /// Adds the gradient of the decoder for that of its rows' lengths, [F].
  void norms_backward(const torch::Tensor& gn_F);

  static void add(torch::Tensor& to, const torch::Tensor& what);
  static void add_rows(torch::Tensor& to, const torch::Tensor& ids, const torch::Tensor& what,
                       const torch::Tensor& like);

 private:
  torch::Tensor encoded_ND_, norms_F_;
};

void standard(Pass& pass);
void p_anneal(Pass& pass, const Annealing& annealing);
void gated(Pass& pass);
void topk(Pass& pass);
void matryoshka(Pass& pass);
void jumprelu(Pass& pass);
void matching_pursuit(Pass& pass);

/// p_anneal's p and coefficient after a batch, as dictionary_learning changes them.
void anneal(Annealing& annealing, int64_t step, const Pass& pass);

/// What sum (f n)^q of rows, or its q-th root, adds to a loss.
struct Penalty {
  bool by_norm = true;
  double q = 1;
  bool root = true;
};
/// The mean penalty of rows. With a coefficient its gradients by f are added to gf and those by n to the decoder's.
double penalise(Pass& pass, const Entries& at, const torch::Tensor& f, const Penalty& penalty,
                double coefficient = 0, torch::Tensor* gf = nullptr);

/// The k that rows (topk, abstopk) or a batch (batchtopk, matryoshka) choose by.
Entries::Choice choice_of(Pass& pass);
/// The least p n that was chosen, which batchtopk's saved threshold follows.
void note_least_chosen(Pass& pass, const Entries& at, const Entries::Choice& choice);
/// Adds the loss by which dead features `ids` fit e = y - x_hat [N, D].
void fit_by_dead(Pass& pass, const torch::Tensor& ids, const torch::Tensor& e_ND);

}  // namespace introspect::sae::training
