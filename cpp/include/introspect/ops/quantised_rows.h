#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect {
struct Quantisation;
}

namespace introspect::ops {

/// A matrix held as a file holds it: pieces one after another, whose rows are blocks of an encoding of ggml's ("Q4_K").
///
/// Products compute with the values that the blocks stand for, unpacked in registers or a few rows at a time: nowhere is
/// there the whole matrix in numbers, and x is never quantised. Bytes are never written to; copies and `rows` share them.
///
/// Bytes that lie in a file may change under it: `check` is called before and after each use of them, and throws where
/// they are no longer what they were.
class INTROSPECT_EXPORT QuantisedRows {
 public:
  /// bytes uint8 [rows, bytes of a row], contiguous on the CPU. `dtype` is that of the model, in which its values pass for
  /// others. Throws ConfigError for an encoding that cannot be unpacked, ShapeError for other bytes than whole blocks.
  QuantisedRows(std::string_view encoding, torch::Tensor bytes, torch::ScalarType dtype,
                std::function<void()> check = {});

  /// The rows of all, one after another. Throws ShapeError for none, or parts of unequal columns or dtypes.
  static QuantisedRows joined(const std::vector<QuantisedRows>& parts);

  /// True if a row of this encoding can be held: a block quantisation, or F32, F16 and BF16, which may stand between them.
  static bool can_hold(std::string_view encoding);

  int64_t n_rows() const { return n_rows_; }
  int64_t n_columns() const { return n_columns_; }
  int64_t nbytes() const;
  torch::ScalarType dtype() const { return dtype_; }
  std::vector<std::string> encodings() const;  ///< of the pieces

  /// Rows [first, first + n), which share the bytes. Throws std::out_of_range for others than there are.
  QuantisedRows rows(int64_t first, int64_t n) const;

  /// The values [n_rows, n_columns], computed in float32 and rounded to `dtype`.
  torch::Tensor dense(torch::ScalarType dtype) const;

  /// The values of the rows that `ids` int64 [...] names -> [..., n_columns]. Throws std::out_of_range for others.
  torch::Tensor gather(const torch::Tensor& ids, torch::ScalarType dtype) const;

  /// x [..., n_columns] times the rows, plus bias [n_rows] or nothing -> [..., n_rows] in x's dtype.
  ///
  /// Summed in float32 (float64 for x in float64). For x in bfloat16 and more than four rows, values are rounded to
  /// bfloat16, as a model's dense weights are. A row's result does not depend on how many rows there are, but for these
  /// two ways. Gradients reach x and the bias. Throws ShapeError for an x of another width.
  torch::Tensor product(const torch::Tensor& x, const torch::Tensor& bias = {}) const;

 private:
  struct Piece {
    const Quantisation* quantisation = nullptr;
    torch::Tensor bytes;          // uint8 [rows, bytes of a row]
    std::function<void()> check;  // empty: they stay as they are
  };
  QuantisedRows() = default;

  /// Calls f(first row, piece) for the part of each piece in rows [first, first + n).
  template <typename F>
  void for_pieces(int64_t first, int64_t n, const F& f) const;
  void check_bytes() const;
  torch::Tensor plain_product(const torch::Tensor& x_ND, const torch::Tensor& bias) const;
  torch::Tensor transposed_product(const torch::Tensor& y_NV) const;
  friend struct QuantisedProduct;

  std::vector<Piece> pieces_;
  int64_t n_rows_ = 0, n_columns_ = 0;
  torch::ScalarType dtype_ = torch::kFloat32;
};

}  // namespace introspect::ops
