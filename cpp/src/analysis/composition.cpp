#include "introspect/analysis/composition.h"

#include "introspect/models/stacked_weights.h"

namespace introspect::analysis {

namespace {

/// The factor R [n, K, K] of matrices A [n, D, K] = Q R: ||A B|| is ||R B||, since Q keeps lengths.
torch::Tensor triangular(const torch::Tensor& A_nDK) {
  return std::get<1>(at::linalg_qr(A_nDK, "r"));
}

/// Products A B of one layer's heads in the form their norms need: left = R_A B [H, K, D], right = A R_B^T [H, D, K].
struct Reduced {
  torch::Tensor left_HKD, right_HDK, norm_H;
};

/// A [H, D, K] times B [H, K, D]; either may have one matrix for each group instead.
Reduced reduce(const torch::Tensor& A, const torch::Tensor& B, int64_t n_heads) {
  const auto per_head = [&](const torch::Tensor& x) { return x.repeat_interleave(n_heads / x.size(0), 0); };
  const auto left = at::matmul(per_head(triangular(A)), per_head(B));
  const auto right = at::matmul(per_head(A), per_head(triangular(B.transpose(1, 2))).transpose(1, 2));
  return {left, right, at::linalg_vector_norm(left, 2, {{1, 2}})};
}

}  // namespace

torch::Tensor composition_scores(const models::Model& model, Composition mode) {
  const int64_t L = model.cfg().n_layers, H = model.cfg().n_heads;
  const auto dtype = model.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  auto scores = at::zeros({L, H, L, H}, at::device(model.device()).dtype(dtype));
  torch::Tensor writers_LHK_D, writer_norms_LH;  // of the layers so far
  for (int64_t layer = 0; layer < L; ++layer) {
    const auto W = [&](const char* name) {
      return models::weight(model, "blocks." + std::to_string(layer) + ".attn." + name).to(dtype);
    };
    const auto ov = reduce(W("_W_V"), W("W_O"), H);
    if (layer > 0) {
      const auto reader = mode == Composition::kV   ? ov
                          : mode == Composition::kQ ? reduce(W("W_Q"), W("_W_K").transpose(1, 2), H)
                                                    : reduce(W("_W_K"), W("W_Q").transpose(1, 2), H);
      const int64_t K_left = ov.left_HKD.size(1), K_right = reader.right_HDK.size(2);
      const auto right_D_HK = reader.right_HDK.transpose(0, 1).flatten(1);
      const auto product = at::mm(writers_LHK_D, right_D_HK).view({layer, H, K_left, H, K_right});
      const auto norms = at::linalg_vector_norm(product, 2, {{2, 4}});  // [layer, H, H]
      scores.narrow(0, 0, layer).select(2, layer).copy_(norms / writer_norms_LH.unsqueeze(2) / reader.norm_H);
    }
    const auto rows = ov.left_HKD.flatten(0, 1);
    const auto norm = ov.norm_H.unsqueeze(0);
    writers_LHK_D = layer ? at::cat({writers_LHK_D, rows}) : rows;
    writer_norms_LH = layer ? at::cat({writer_norms_LH, norm}) : norm;
  }
  return scores;
}

}  // namespace introspect::analysis
