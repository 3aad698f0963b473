#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "models/architecture.h"

namespace introspect::models {

/// How a checkpoint orders the rows of queries, keys and values.
enum class RowOrder : uint8_t {
  kPlain,        // as the layers use them
  kInterleaved,  // rows of each head in the order 0, K/2, 1, K/2 + 1, ...
  kByHead,       // q, k and v of the first head, then of the second, ...
};

/// A module of a checkpoint whose rows are rows [first, first + n) of one of a block's Linears.
struct ModuleRows {
  std::string name;  // with "{}" for the layer's number
  int64_t first, n;
  RowOrder order = RowOrder::kPlain;
};

/// The modules that make up a Linear of a block ("attn.QKV", see nn::for_each_part), in the order of its rows; none for an
/// MLP's that is a mixture of experts.
std::vector<ModuleRows> modules_of(const WeightMap& map, const Config& cfg, std::string_view part);

/// The module of a norm of a block ("ln1"), with "{}" for the layer's number.
const std::string& norm_module(const WeightMap& map, std::string_view part);

/// `name` with a layer's number for its "{}".
std::string at_layer(std::string name, int64_t layer);

/// `name` with an expert's number for its "{e}".
std::string at_expert(std::string name, int64_t expert);

/// Rows [n, ...] of a module in the order in which the layers use them.
torch::Tensor in_order(const torch::Tensor& rows, RowOrder order, const Config& cfg);

/// The same where the rows stand, contiguous.
void put_in_order(const torch::Tensor& rows, RowOrder order, const Config& cfg);

/// The inverse of in_order: rows in the order in which a checkpoint keeps them.
torch::Tensor in_file_order(const torch::Tensor& rows, RowOrder order, const Config& cfg);

}  // namespace introspect::models
