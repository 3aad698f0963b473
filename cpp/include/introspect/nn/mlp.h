#pragma once

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/nn/context.h"
#include "introspect/nn/linear.h"
#include "introspect/ops/activation.h"

namespace introspect::nn {

/// Weights of an MLP, with one product for a gate and the input.
struct MlpWeights {
  Linear in;   // [2M, D]: the gate's rows, then the input's; [M, D] without a gate
  Linear out;  // [D, M]
};

/// Weights of a mixture of experts: MLPs, of which a router chooses some for each token.
struct MixtureWeights {
  Linear router;                    // [E, D]
  std::vector<MlpWeights> experts;  // E, of equal shapes
};

struct MixtureOptions {
  int64_t experts_per_token = 0;
  bool norm_topk_prob = false;  // the weights of those chosen sum to one
};

/// act(x W_in) W_out, or with a gate (act(x W_gate) * (x W_in)) W_out; or the sum of some such MLPs, each times the
/// probability that a router gives it.
///
/// A mixture runs an expert for the tokens that chose it, and for no others. Its choice is not differentiable; its
/// weights are, in the router too. Two tokens' sums in another order may differ in the last digit, and a router that is
/// undecided between two experts to that digit then chooses otherwise: a batch is equal to single runs but for such ties.
class INTROSPECT_EXPORT Mlp {
 public:
  /// Throws ShapeError unless `in` has as many rows as `out` has columns, or twice as many.
  Mlp(MlpWeights weights, ops::Activation activation);

  /// Throws ShapeError likewise for each expert, unless all are of equal shapes and the router has a row for each.
  Mlp(MixtureWeights weights, MixtureOptions options, ops::Activation activation);

  /// x [B, T, D] -> [B, T, D]. Throws std::out_of_range if a hook names an expert that there is not.
  torch::Tensor forward(const torch::Tensor& x_BTD, const Context& ctx) const;

  bool is_mixture() const { return !mixture_.experts.empty(); }

  /// Throws ConfigError for a mixture, which has no such matrices.
  const MlpWeights& weights() const;
  MlpWeights& weights();  ///< of a copy that is edited; shapes stay

  /// Of a mixture.
  const MixtureWeights& mixture() const { return mixture_; }
  const MixtureOptions& mixture_options() const { return options_; }

  ops::Activation activation() const { return activation_; }
  int64_t d_mlp() const { return first().out.n_in(); }  ///< of each expert
  bool gated() const { return first().in.n_out() == 2 * d_mlp(); }

  /// The Linears that read what the MLP reads (a router and experts' too), and those that write what it writes.
  std::vector<Linear*> readers();
  std::vector<Linear*> writers();

  /// Calls f(name, linear) for every Linear of an Mlp or const Mlp: "mlp.in", "mlp.out"; "mlp.router", "mlp.experts.0.in",
  /// ... of a mixture.
  template <typename Self, typename F>
  static void for_each_linear(Self& mlp, F&& f) {
    if (!mlp.is_mixture()) {
      f(std::string_view("mlp.in"), mlp.weights_.in);
      f(std::string_view("mlp.out"), mlp.weights_.out);
      return;
    }
    f(std::string_view("mlp.router"), mlp.mixture_.router);
    for (size_t e = 0; e < mlp.mixture_.experts.size(); ++e) {
      const auto expert = "mlp.experts." + std::to_string(e);
      f(std::string_view(expert + ".in"), mlp.mixture_.experts[e].in);
      f(std::string_view(expert + ".out"), mlp.mixture_.experts[e].out);
    }
  }

 private:
  const MlpWeights& first() const { return is_mixture() ? mixture_.experts.front() : weights_; }
  torch::Tensor mix(const torch::Tensor& x_BTD, const Context& ctx) const;

  MlpWeights weights_;
  MixtureWeights mixture_;
  MixtureOptions options_;
  ops::Activation activation_;
};

}  // namespace introspect::nn
