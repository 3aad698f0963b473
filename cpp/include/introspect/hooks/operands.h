#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::hooks {

/// The tensors that an operator takes at one layer, by name. Most operators take one, called "v"; a dictionary takes
/// W_enc, b_enc, W_dec and b_dec.
class INTROSPECT_EXPORT Operands {
 public:
  using Tensors = std::map<std::string, torch::Tensor, std::less<>>;

  Operands() = default;
  Operands(torch::Tensor v);  // NOLINT(google-explicit-constructor): one tensor stands for itself
  Operands(Tensors tensors);  // NOLINT(google-explicit-constructor): undefined ones are left out

  bool empty() const { return tensors_.empty(); }
  bool contains(std::string_view name) const { return tensors_.contains(name); }

  /// The tensor called "v"; undefined if there is none.
  const torch::Tensor& v() const { return get("v"); }
  /// The tensor of a name; undefined if there is none.
  const torch::Tensor& get(std::string_view name) const;

  /// True if "v" is the only tensor.
  bool is_v() const { return tensors_.size() == 1 && contains("v"); }

  Tensors::const_iterator begin() const { return tensors_.begin(); }
  Tensors::const_iterator end() const { return tensors_.end(); }

  bool requires_grad() const;
  Operands to(torch::Device device) const;
  Operands clone() const;

 private:
  Tensors tensors_;
};

}  // namespace introspect::hooks
