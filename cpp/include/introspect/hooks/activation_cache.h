#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::hooks {

/// Activations by hook name, in the order in which they were recorded: that of the pass, and gradients (under the
/// name with `_grad` after it) in that of the backward pass.
///
/// A value; copies share the tensors. What is recorded again replaces what stood under the name, in its place.
/// One cache is not for passes that run at the same time.
class INTROSPECT_EXPORT ActivationCache {
 public:
  /// Keeps `value` as it is, under the site's name or, if it is a gradient, that name with `_grad`.
  void set(Site site, torch::Tensor value, bool gradient = false);

  /// The value under a full name. Throws std::out_of_range, saying what there is, if it was not recorded.
  const torch::Tensor& at(std::string_view name) const;
  const torch::Tensor& at(Site site, bool gradient = false) const;

  bool contains(std::string_view name) const { return places_.count(std::string(name)) > 0; }
  size_t size() const { return items_.size(); }

  const std::vector<std::pair<std::string, torch::Tensor>>& items() const { return items_; }
  std::vector<std::string> names() const;

  /// Memory of all values, in bytes; memory that several share counts once.
  int64_t nbytes() const;

  /// The same values on another device, in another floating dtype, or both.
  ActivationCache to(std::optional<torch::Device> device, std::optional<torch::ScalarType> dtype = {}) const;

 private:
  std::vector<std::pair<std::string, torch::Tensor>> items_;
  std::unordered_map<std::string, size_t> places_;  // name -> index into items_
};

}  // namespace introspect::hooks
