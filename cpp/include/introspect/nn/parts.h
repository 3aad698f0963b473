#pragma once

#include <string_view>
#include <type_traits>

#include "introspect/nn/block.h"

namespace introspect::nn {

/// Calls f(name, part) for every Linear, Norm and Sinks of a block, in the order of the forward pass: "ln1", "attn.QKV",
/// "attn.q_norm", "attn.k_norm", "attn.sinks", "attn.O", "ln1_post", "ln2", "mlp.in", "mlp.out" (or "mlp.router",
/// "mlp.experts.0.in", "mlp.experts.0.out" and so on), "ln2_post", those that there are. A name lives as long as the call.
///
/// Parts is BlockParts, whose parts f may then replace by others of equal shapes, or const BlockParts.
template <typename Parts, typename F>
void for_each_part(Parts& block, F&& f) {
  const auto maybe = [&](std::string_view name, auto& part) {
    if (part) f(name, *part);
  };
  auto& attn = block.attn.weights();
  f(std::string_view("ln1"), block.ln1);
  f(std::string_view("attn.QKV"), attn.QKV);
  maybe("attn.q_norm", attn.q_norm);
  maybe("attn.k_norm", attn.k_norm);
  maybe("attn.sinks", attn.sinks);
  f(std::string_view("attn.O"), attn.O);
  maybe("ln1_post", block.ln1_post);
  f(std::string_view("ln2"), block.ln2);
  Mlp::for_each_linear(block.mlp, f);
  maybe("ln2_post", block.ln2_post);
}

/// Calls f(name, tensor) for every tensor of a block, in the same order: "ln1.w", "attn.W_QKV", "attn.b_QKV", ...
template <typename Parts, typename F>
void for_each_tensor(Parts& block, F&& f) {
  for_each_part(block, [&](std::string_view name, auto& part) {
    std::remove_cvref_t<decltype(part)>::for_each_tensor(part, name, f);
  });
}

}  // namespace introspect::nn
