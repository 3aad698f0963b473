#pragma once

#include <mutex>

#include "introspect/core/check.h"
#include "introspect/hooks/intervention.h"

#include "tiny_model.h"

namespace introspect::testing {

/// A linear map with a bias, "test.affine": (1 - s) x + s (W x + b), W [D, D] and b [D].
inline torch::Tensor affine(const hooks::Operator::Input& in) {
  const auto mapped = at::linear(in.x, in.operands.get("W"), in.operands.get("b"));
  return at::lerp(in.x, mapped, in.strength);
}

/// A small transcoder, "test.transcode": x + s W_dec relu(W_enc source), W_enc [F, D of the source] and W_dec [D, F].
inline torch::Tensor transcode(const hooks::Operator::Input& in) {
  const auto features = at::relu(at::linear(in.source, in.operands.get("W_enc")));
  return in.x + in.strength * at::linear(features, in.operands.get("W_dec"));
}

/// Makes both known, once.
inline void register_test_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    using Need = hooks::Operator::Need;
    hooks::register_operator(
        "test.affine",
        {.apply = affine,
         .operands = {{"W", Need::kRequired}, {"b", Need::kOptional}},
         .check_operands = [](const hooks::Operands& operands, const hooks::Operator::Widths& widths) {
           check<ShapeError>(operands.get("W").sizes() == at::IntArrayRef{*widths.x, *widths.x},
                             "test.affine: W must be square, got ", operands.get("W").sizes());
         }});
    hooks::register_operator(
        "test.transcode",
        {.apply = transcode,
         .operands = {{"W_enc", Need::kRequired}, {"W_dec", Need::kRequired}},
         .reads_source = true,
         .check_operands = [](const hooks::Operands& operands, const hooks::Operator::Widths& widths) {
           check<ShapeError>(
               operands.get("W_enc").size(1) == *widths.source && operands.get("W_dec").size(0) == *widths.x,
               "test.transcode: W_enc must read ", *widths.source, " and W_dec write ", *widths.x, ", got ",
               operands.get("W_enc").sizes(), " and ", operands.get("W_dec").sizes());
         }});
  });
}

/// A transcoder from `source` (of a layer, or of the one that is changed) to `point` of some layers of a tiny model.
inline hooks::Intervention transcoder(hooks::Point source, std::optional<int64_t> source_layer,
                                      hooks::Point point, const std::vector<int64_t>& layers,
                                      double strength = 1.5, uint64_t seed = 11) {
  register_test_operators();
  hooks::Intervention out{.op = "test.transcode", .point = point, .strength = strength};
  out.source = source;
  out.source_layer = source_layer;
  for (const int64_t layer : layers)
    out.values[layer] =
        hooks::Operands::Tensors{{"W_enc", random_tensor({5, 16}, seed)},
                                 {"W_dec", random_tensor({16, 5}, seed + 1 + static_cast<uint64_t>(layer))}};
  return out;
}

inline hooks::Intervention affine_map(hooks::Point point, int64_t layer, double strength = 0.5,
                                      uint64_t seed = 21) {
  register_test_operators();
  hooks::Intervention out{.op = "test.affine", .point = point, .strength = strength};
  out.values[layer] =
      hooks::Operands::Tensors{{"W", random_tensor({16, 16}, seed)}, {"b", random_tensor({16}, seed + 1)}};
  return out;
}

}  // namespace introspect::testing
