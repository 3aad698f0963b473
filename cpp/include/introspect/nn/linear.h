#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::ops {
class QuantisedRows;
}

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

/// W x + b over the last dimension, and how W is held: dense, in a dtype on a device, or as a file's quantised blocks; with
/// additions of low rank or none.
///
/// Nobody outside sees how W is held, but that blocks are no tensor: they cannot be trained or replaced by name. A Linear is
/// a value; copies share their tensors.
class INTROSPECT_EXPORT Linear {
 public:
  Linear() = default;

  /// weight [out, in]; bias [out], undefined: none. Throws ShapeError for others.
  explicit Linear(torch::Tensor weight, torch::Tensor bias = {});

  /// The same with a weight that stays in its blocks.
  explicit Linear(const ops::QuantisedRows& weight, torch::Tensor bias = {});

  /// This one with one more addition. Throws ShapeError for one that does not fit.
  Linear plus(LowRank addition) const;

  /// This one with another bias. Throws ShapeError for one that does not fit.
  Linear with_bias(torch::Tensor bias) const;

  /// x [..., in] -> [..., out], in x's dtype. Gradients reach x, the bias, A and B and a dense weight where they ask for
  /// them.
  torch::Tensor forward(const torch::Tensor& x) const;

  /// The same for x float32 [N, in] with W in float32, whatever dtype it is held in: what a readout computes.
  torch::Tensor forward_fp32(const torch::Tensor& x_ND) const;

  /// Rows [first, first + n) as a Linear that shares its tensors with this one.
  Linear rows(int64_t first, int64_t n) const;

  /// The rows of W that `ids` int64 [...] names, [..., in], in dtype() or another: what an embedding is. Without additions.
  torch::Tensor gather(const torch::Tensor& ids) const { return gather(ids, dtype()); }
  torch::Tensor gather(const torch::Tensor& ids, torch::ScalarType dtype) const;

  /// W [out, in] with what is added to it, in dtype() or another: the tensor in use, not to be written to, where W is dense
  /// in this dtype and nothing is added, and a copy otherwise.
  torch::Tensor dense() const { return dense(dtype()); }
  torch::Tensor dense(torch::ScalarType dtype) const;

  const torch::Tensor& bias() const { return bias_; }
  int64_t n_out() const;
  int64_t n_in() const;
  torch::Device device() const;
  torch::ScalarType dtype() const;       ///< of a weight in blocks, the model's
  torch::ScalarType wide_dtype() const;  ///< float32, or float64 for float64: what readouts are computed in
  bool is_quantised() const { return quantised_ != nullptr; }
  bool shares_weight(const Linear& other) const;  ///< as a tied unembedding does with the embedding
  int64_t numel() const;                          ///< numbers, those of the bias and the additions too
  int64_t nbytes() const;                         ///< that they take in memory

  /// Calls f(name, tensor) for every tensor of a Linear or const Linear: "attn.QKV" has "attn.W_QKV", "attn.b_QKV" if
  /// there is a bias and, for its first addition, "attn.A_QKV.0" and "attn.B_QKV.0".
  template <typename Self, typename F>
  static void for_each_tensor(Self& linear, std::string_view part, F&& f) {
    const auto dot = part.rfind('.') + 1;
    const auto name = [&](const char* kind) {
      return std::string(part.substr(0, dot)) + kind + std::string(part.substr(dot));
    };
    if (linear.weight_.defined()) f(name("W_"), linear.weight_);
    if (linear.bias_.defined()) f(name("b_"), linear.bias_);
    for (size_t i = 0; i < linear.additions_.size(); ++i) {
      f(name("A_") + "." + std::to_string(i), linear.additions_[i].A);
      f(name("B_") + "." + std::to_string(i), linear.additions_[i].B);
    }
  }

 private:
  torch::Tensor weight_;                                 // [out, in], or
  std::shared_ptr<const ops::QuantisedRows> quantised_;  // the same in blocks
  torch::Tensor bias_;                                   // [out]
  std::vector<LowRank> additions_;
};

}  // namespace introspect::nn
