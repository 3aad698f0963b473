#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/sole_user.h"
#include "introspect/export.h"
#include "introspect/hooks/hook_point.h"

namespace introspect::hooks {

/// Activations by hook name, in the order in which they were recorded: that of the pass, and gradients (under the
/// name with `_grad` after it) in that of the backward pass.
///
/// A value; copies share the tensors. What is recorded again replaces what stood under the name, in its place.
/// One thread at a time may use it, and a pass that records into it uses it from its beginning to its end: a second
/// thread gets an Error.
class INTROSPECT_EXPORT ActivationCache {
 public:
  /// Keeps `value` as it is, under the site's name or, if it is a gradient, that name with `_grad`.
  void set(Site site, torch::Tensor value, bool gradient = false);

  /// The value under a full name. Throws std::out_of_range, saying what there is, if it was not recorded.
  torch::Tensor at(std::string_view name) const;
  torch::Tensor at(Site site, bool gradient = false) const;

  bool contains(std::string_view name) const;
  size_t size() const;

  std::vector<std::pair<std::string, torch::Tensor>> items() const;
  std::vector<std::string> names() const;

  /// Memory of all values, in bytes; memory that several share counts once.
  int64_t nbytes() const;

  /// The same values on another device, in another floating dtype, or both.
  ActivationCache to(std::optional<torch::Device> device, std::optional<torch::ScalarType> dtype = {}) const;

  /// Keeps other threads out for as long as the result lives. Throws Error if one is using the cache; `who` is what this
  /// one wanted to do.
  [[nodiscard]] SoleUser::Use enter(const char* who) const { return user_.enter(who); }

 private:
  std::vector<std::pair<std::string, torch::Tensor>> items_;
  std::unordered_map<std::string, size_t> places_;  // name -> index into items_
  SoleUser user_;
};

}  // namespace introspect::hooks
