#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <torch/types.h>

#include "introspect/hooks/intervention.h"

namespace introspect::hooks {

/// The rows, positions and heads of one tensor that an intervention changes, taken out and put back.
///
/// Taken out, positions are dimension 1 and heads dimension 2, at scores and patterns too.
class Selection {
 public:
  /// Nothing if the intervention does not touch these positions. Throws std::out_of_range for rows and heads that x
  /// does not have.
  static std::optional<Selection> of(const Intervention& intervention, const torch::Tensor& x,
                                     int64_t offset);

  /// The intervention's heads at some rows of x and some positions of the pass, at least one of each.
  static Selection at(const Intervention& intervention, const torch::Tensor& x, int64_t offset,
                      std::vector<int64_t> rows, std::vector<int64_t> positions);

  torch::Tensor take(const torch::Tensor& x) const;

  /// The selected rows and positions of the same pass at another point, whose dimension 1 is the position.
  torch::Tensor take_source(const torch::Tensor& source) const;

  /// x with `values`, shaped as what was taken, in the place of the selection. Out of place.
  torch::Tensor put(const torch::Tensor& x, const torch::Tensor& values) const;

  /// The same into `x`, which is contiguous.
  void write(torch::Tensor& x, const torch::Tensor& values) const;

  /// The selected positions of a tensor whose dimension `axis` counts them from the start of the sequence.
  /// Throws ShapeError if it is too short.
  torch::Tensor take_absolute(const torch::Tensor& stored, int64_t axis) const;

  /// True if every position of the intervention that comes before the end of this pass is in this pass.
  bool begins_here() const { return begins_here_; }

 private:
  /// Indices along one dimension: a range, or a list where they are none.
  struct Axis {
    int64_t start = 0, size = 0;
    std::vector<int64_t> list;
    static Axis of(std::vector<int64_t> indices);
  };

  void choose_heads(const Intervention& intervention, const torch::Tensor& x);
  torch::Tensor take_axis(const torch::Tensor& x, int64_t axis, const Axis& indices) const;

  Point point_{};
  int64_t offset_ = 0;
  bool whole_ = false;
  bool begins_here_ = false;
  Axis rows_, positions_;
  std::optional<Axis> heads_;
};

/// The rows of a batch of B that the intervention is for. Throws std::out_of_range for those that are not there.
std::vector<int64_t> selected_rows(const Intervention& intervention, int64_t B);

/// True if the filter changes nothing in this text, whatever its tokens are.
bool lets_all_through(const TextFilter& filter, const Text* text);

/// The positions of a pass of T that an intervention with a text filter changes, counted from the pass's first, in
/// each of `rows`. Throws HookError if the text is not known well enough.
std::vector<std::vector<int64_t>> filtered_positions(const Intervention& intervention,
                                                     const std::vector<int64_t>& rows, const Text* text,
                                                     int64_t offset, int64_t T);

}  // namespace introspect::hooks
