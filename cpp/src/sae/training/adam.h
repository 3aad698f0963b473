#pragma once

#include <cstdint>

#include <torch/types.h>

#include "introspect/sae/trainer.h"

namespace introspect::sae::training {

/// The tensors of weights, of their gradients or of their moments, by name and in one order.
template <typename Weights, typename Body>
void for_each_weight(Weights& w, const Body& body) {
  body("W_enc", w.W_enc_FD);
  body("b_enc", w.b_enc_F);
  body("W_dec", w.W_dec_FD);
  body("b_dec", w.b_dec_D);
  body("threshold", w.threshold_F);
  body("b_gate", w.b_gate_F);
  body("b_mag", w.b_mag_F);
  body("r_mag", w.r_mag_F);
  body("W_skip", w.W_skip_DD);
}

/// Length of the gradient of all weights together.
double gradient_norm(const DictionaryWeights& gradient);

/// One step of Adam (Kingma and Ba 2015, arXiv:1412.6980, as torch.optim.Adam) in place, one pass over each tensor.
/// Weights without a gradient move by their moments. `step` is 1 for the first; gradients are times `scale`.
void adam(const DictionaryWeights& w, const DictionaryWeights& gradient, const DictionaryWeights& first,
          const DictionaryWeights& second, const TrainerOptions& options, int64_t step, double lr,
          double scale);

/// Learning rate of a step, counted from 0: SAELens's get_lr_scheduler. A line up to lr over warm_up_steps, constant or half
/// a cosine to lr_end, a line to 0 over the last decay_steps.
double learning_rate(const TrainerOptions& options, int64_t step);

}  // namespace introspect::sae::training
