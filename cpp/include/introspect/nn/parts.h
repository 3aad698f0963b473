#pragma once

#include <type_traits>

#include "introspect/nn/block.h"

namespace introspect::nn {

/// Calls f(name, part) for every Linear and Norm of a block, in the order of the forward pass: "ln1", "attn.QKV",
/// "attn.q_norm", "attn.k_norm", "attn.O", "ln1_post", "ln2", "mlp.in", "mlp.out", "ln2_post", those that there are.
///
/// Parts is BlockParts, whose parts f may then replace by others of equal shapes, or const BlockParts.
template <typename Parts, typename F>
void for_each_part(Parts& block, F&& f) {
  const auto maybe = [&](const char* name, auto& norm) {
    if (norm) f(name, *norm);
  };
  auto& attn = block.attn.weights();
  auto& mlp = block.mlp.weights();
  f("ln1", block.ln1);
  f("attn.QKV", attn.QKV);
  maybe("attn.q_norm", attn.q_norm);
  maybe("attn.k_norm", attn.k_norm);
  f("attn.O", attn.O);
  maybe("ln1_post", block.ln1_post);
  f("ln2", block.ln2);
  f("mlp.in", mlp.in);
  f("mlp.out", mlp.out);
  maybe("ln2_post", block.ln2_post);
}

/// Calls f(name, tensor) for every tensor of a block, in the same order: "ln1.w", "attn.W_QKV", "attn.b_QKV", ...
template <typename Parts, typename F>
void for_each_tensor(Parts& block, F&& f) {
  for_each_part(block, [&](const char* name, auto& part) {
    std::remove_cvref_t<decltype(part)>::for_each_tensor(part, name, f);
  });
}

}  // namespace introspect::nn
