#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <torch/types.h>

#include "introspect/experiments/readouts.h"

namespace introspect::experiments {

/// The needs of several readouts, merged into few readings of a graph: equal ones are one, and activations of one point
/// and place are one reading of all their layers.
class MergedNeeds {
 public:
  /// Where a need's tensor is found.
  struct Source {
    bool is_unsteered = false;
    size_t place = 0;             // in `steered` or `unsteered`
    std::vector<int64_t> rows;    // of the layers that were read; empty: all
    std::vector<int64_t> layers;  // that are needed; empty: all
  };

  /// After the last `add`, `finish`.
  Source add(const Need& need);
  void finish(Source& source) const;

  /// [positions, layers, ...], or [layers, heads] of attention; undefined where `from` holds nothing.
  static torch::Tensor take(const Source& source, const std::vector<torch::Tensor>& steered,
                            const std::vector<torch::Tensor>& unsteered);

  const std::vector<Need>& steered() const { return steered_; }
  const std::vector<Need>& unsteered() const { return unsteered_; }

 private:
  std::vector<Need> steered_, unsteered_;
};

}  // namespace introspect::experiments
