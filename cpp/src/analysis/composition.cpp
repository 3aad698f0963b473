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
  const auto W = [&](int64_t layer, const char* name) {
    return models::weight(model, "blocks." + std::to_string(layer) + ".attn." + name).to(dtype);
  };
  std::vector<Reduced> writers;
  std::vector<torch::Tensor> rows, norms;
  for (int64_t layer = 0; layer < L; ++layer) {
    writers.push_back(reduce(W(layer, "_W_V"), W(layer, "W_O"), H));
    rows.push_back(writers.back().left_HKD.flatten(0, 1));
    norms.push_back(writers.back().norm_H);
  }
  const auto writers_LHK_D = at::cat(rows), norms_LH = at::stack(norms);
  const int64_t K_left = writers_LHK_D.size(0) / (L * H);

  auto scores = at::zeros({L, H, L, H}, writers_LHK_D.options());
  for (int64_t layer = 1; layer < L; ++layer) {
    const auto reader = mode == Composition::kV ? writers[static_cast<size_t>(layer)]
                        : mode == Composition::kQ
                            ? reduce(W(layer, "W_Q"), W(layer, "_W_K").transpose(1, 2), H)
                            : reduce(W(layer, "_W_K"), W(layer, "W_Q").transpose(1, 2), H);
    const auto right_D_HK = reader.right_HDK.transpose(0, 1).flatten(1);
    const auto product = at::mm(writers_LHK_D.narrow(0, 0, layer * H * K_left), right_D_HK);
    // A norm of norms: along the inner dimension first, which is in one piece of memory.
    const auto row_norms = at::linalg_vector_norm(product.view({layer, H, K_left, H, -1}), 2, {{4}});
    const auto product_norms = at::linalg_vector_norm(row_norms, 2, {{2}});  // [layer, H, H]
    scores.narrow(0, 0, layer)
        .select(2, layer)
        .copy_(product_norms / norms_LH.narrow(0, 0, layer).unsqueeze(2) / reader.norm_H);
  }
  return scores;
}

}  // namespace introspect::analysis
