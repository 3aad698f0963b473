#pragma once

#include <torch/types.h>

#include "introspect/models/model.h"

namespace introspect::circuits {

/// float32, or float64 of a float64 model: what sums and gradients are made in.
inline torch::ScalarType wide(torch::ScalarType dtype) {
  return dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
}
inline torch::Tensor wide(const torch::Tensor& x) {
  return x.to(wide(x.scalar_type()));
}

/// A norm over the last dimension. In float64 it is float64 all through, where Model::forward rounds an RMS norm to
/// float32 as transformers does: identities of a decomposition then hold to float64's digits. Differentiable.
torch::Tensor normed(const nn::Norm& norm, const torch::Tensor& x);

/// What a norm adds to the stream for a part of its input, [..., D], where the whole was `whole`: the norm is linear once
/// its scale is that of the whole. The parts of an input sum to the norm's output, but for its bias.
torch::Tensor normed_part(const nn::Norm& norm, const torch::Tensor& part, const torch::Tensor& whole);

/// The gradient at the norm's input x of a gradient y at its output, full derivative: y may have more dimensions in front.
torch::Tensor norm_gradient(const nn::Norm& norm, const torch::Tensor& x, const torch::Tensor& y);

/// One over what the norm divides x by, [..., 1].
torch::Tensor inverse_scale(const nn::Norm& norm, const torch::Tensor& x);

/// The norm without its bias once its scale is fixed: linear in x. And its adjoint.
torch::Tensor frozen_normed(const nn::Norm& norm, const torch::Tensor& x, const torch::Tensor& inverse);
torch::Tensor frozen_gradient(const nn::Norm& norm, const torch::Tensor& y, const torch::Tensor& inverse);

}  // namespace introspect::circuits
