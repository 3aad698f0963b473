#include "models/part_names.h"

#include "core/reused_memory.h"
#include "introspect/core/check.h"

namespace introspect::models {

std::vector<ModuleRows> modules_of(const WeightMap& map, const Config& cfg, std::string_view part) {
  const int64_t HK = cfg.n_heads * cfg.d_head, GK = cfg.n_key_value_heads * cfg.d_head, M = cfg.d_mlp;
  if (part == "attn.O") return {{map.o, 0, cfg.d_model}};
  if (part == "mlp.out" && !cfg.is_mixture()) return {{map.out, 0, cfg.d_model}};
  if (part == "attn.QKV") {
    if (!map.qkv.empty())
      return {{map.qkv, 0, HK + 2 * GK, map.qkv_by_head ? RowOrder::kByHead : RowOrder::kPlain}};
    const auto order = map.interleaved_rotary ? RowOrder::kInterleaved : RowOrder::kPlain;
    return {{map.q, 0, HK, order}, {map.k, HK, GK, order}, {map.v, HK + GK, GK}};
  }
  if (cfg.is_mixture()) return {};  // experts are read in one (weight_reader.cpp)
  check<Error>(part == "mlp.in", "modules_of: unknown part ", part);
  if (!map.gate.empty()) return {{map.gate, 0, M}, {map.in, M, M}};
  return {{cfg.gated_mlp ? map.gate_in : map.in, 0, cfg.gated_mlp ? 2 * M : M}};
}

const std::string& norm_module(const WeightMap& map, std::string_view part) {
  if (part == "ln1") return map.ln1;
  if (part == "ln1_post") return map.ln1_post;
  if (part == "ln2") return map.ln2;
  if (part == "ln2_post") return map.ln2_post;
  if (part == "attn.q_norm") return map.q_norm;
  if (part == "attn.k_norm") return map.k_norm;
  check<Error>(part == "ln_final", "norm_module: unknown part ", part);
  return map.ln_final;
}

std::string at_layer(std::string name, int64_t layer) {
  if (const auto place = name.find("{}"); place != std::string::npos)
    name.replace(place, 2, std::to_string(layer));
  return name;
}

std::string at_expert(std::string name, int64_t expert) {
  if (const auto place = name.find("{e}"); place != std::string::npos)
    name.replace(place, 3, std::to_string(expert));
  return name;
}

namespace {

/// The rows in our order, seen through more dimensions.
torch::Tensor order_view(const torch::Tensor& rows, RowOrder order, const Config& cfg) {
  const int64_t K = cfg.d_head;
  switch (order) {
    case RowOrder::kPlain:
      return rows;
    case RowOrder::kInterleaved:
      return rows.reshape({rows.size(0) / K, K / 2, 2, -1}).transpose(1, 2);
    case RowOrder::kByHead:
      return rows.view({cfg.n_heads, 3, K, -1}).transpose(0, 1);
  }
  throw Error("in_order: unknown RowOrder");
}

}  // namespace

torch::Tensor in_order(const torch::Tensor& rows, RowOrder order, const Config& cfg) {
  return order_view(rows, order, cfg).reshape(rows.sizes());
}

void put_in_order(const torch::Tensor& rows, RowOrder order, const Config& cfg) {
  if (order == RowOrder::kPlain) return;
  const auto ordered = order_view(rows, order, cfg);
  // Memory of its own, not the heap's: what is loaded between would keep the hole that a copy leaves there.
  const auto copy = reused_empty(ordered.sizes(), rows.options());
  copy.copy_(ordered);
  rows.copy_(copy.view(rows.sizes()));
}

torch::Tensor in_file_order(const torch::Tensor& rows, RowOrder order, const Config& cfg) {
  const int64_t K = cfg.d_head;
  switch (order) {
    case RowOrder::kPlain:
      return rows;
    case RowOrder::kInterleaved:
      return rows.reshape({rows.size(0) / K, 2, K / 2, -1}).transpose(1, 2).reshape(rows.sizes());
    case RowOrder::kByHead:
      return rows.reshape({3, cfg.n_heads, K, -1}).transpose(0, 1).reshape(rows.sizes());
  }
  throw Error("in_file_order: unknown RowOrder");
}

}  // namespace introspect::models
