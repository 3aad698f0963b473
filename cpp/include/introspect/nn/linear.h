#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::nn {

/// A product of low rank that is added to some rows of a Linear's output: y[first_row + i] += scaling * (B A x)[i].
///
/// A and B may be of a wider dtype than the Linear: the product is then made in it, and the sum rounded once.
/// Source: LoRA, Hu et al. 2021, arXiv:2106.09685.
struct LowRank {
  torch::Tensor A;  // [r, in]
  torch::Tensor B;  // [n, r]
  double scaling = 1;
  int64_t first_row = 0;
};

/// W x + b over the last dimension, and how W is held: dense, in a dtype on a device, with additions of low rank or none.
///
/// Nobody outside sees how W is held: a kind that keeps a file's quantised blocks needs a member here and a case in
/// `forward`, `rows`, `dense`, `numel` and `nbytes`. A Linear is a value; copies share their tensors.
class INTROSPECT_EXPORT Linear {
 public:
  Linear() = default;

  /// weight [out, in]; bias [out], undefined: none. Throws ShapeError for others.
  explicit Linear(torch::Tensor weight, torch::Tensor bias = {});

  /// This one with one more addition. Throws ShapeError for one that does not fit.
  Linear plus(LowRank addition) const;

  /// x [..., in] -> [..., out], in x's dtype. Gradients reach the weight, the bias, A and B where they ask for them.
  torch::Tensor forward(const torch::Tensor& x) const;

  /// Rows [first, first + n) as a Linear that shares its tensors with this one.
  Linear rows(int64_t first, int64_t n) const;

  /// W [out, in] with what is added to it: the tensor in use, not to be written to, where nothing is added.
  torch::Tensor dense() const;

  const torch::Tensor& bias() const { return bias_; }
  int64_t n_out() const { return weight_.size(0); }
  int64_t n_in() const { return weight_.size(1); }
  torch::Device device() const { return weight_.device(); }
  int64_t numel() const;   ///< numbers, those of the bias and the additions too
  int64_t nbytes() const;  ///< that they take in memory

  /// Calls f(name, tensor) for every tensor of a Linear or const Linear: "attn.QKV" has "attn.W_QKV", "attn.b_QKV" if
  /// there is a bias and, for its first addition, "attn.A_QKV.0" and "attn.B_QKV.0".
  template <typename Self, typename F>
  static void for_each_tensor(Self& linear, std::string_view part, F&& f) {
    const auto dot = part.rfind('.') + 1;
    const auto name = [&](const char* kind) {
      return std::string(part.substr(0, dot)) + kind + std::string(part.substr(dot));
    };
    f(name("W_"), linear.weight_);
    if (linear.bias_.defined()) f(name("b_"), linear.bias_);
    for (size_t i = 0; i < linear.additions_.size(); ++i) {
      f(name("A_") + "." + std::to_string(i), linear.additions_[i].A);
      f(name("B_") + "." + std::to_string(i), linear.additions_[i].B);
    }
  }

 private:
  torch::Tensor weight_;  // [out, in]
  torch::Tensor bias_;    // [out]
  std::vector<LowRank> additions_;
};

}  // namespace introspect::nn
