#pragma once

#include "bindings.h"

#include <pybind11/numpy.h>

#include "introspect/statistics/null_band.h"

namespace pybind11::detail {

/// One-dimensional numbers of any kind that numpy can read: lists, arrays, tensors.
template <typename Number>
struct type_caster<std::span<const Number>> {
  using Array = array_t<Number, array::c_style | array::forcecast>;
  static constexpr auto kName = const_name<std::is_same_v<Number, double>>("collections.abc.Sequence[float]",
                                                                           "collections.abc.Sequence[int]");
  PYBIND11_TYPE_CASTER(std::span<const Number>, kName);
  bool load(handle source, bool) {
    if (isinstance<str>(source)) return false;
    array_ = Array::ensure(source);
    if (!array_ || array_.ndim() != 1) return false;
    value = {array_.data(), static_cast<size_t>(array_.size())};
    return true;
  }

 private:
  Array array_;
};

/// Two-dimensional numbers: lists of lists, arrays, tensors.
template <>
struct type_caster<introspect::statistics::Matrix> {
  using Array = array_t<double, array::c_style | array::forcecast>;
  PYBIND11_TYPE_CASTER(introspect::statistics::Matrix,
                       const_name("collections.abc.Sequence[collections.abc.Sequence[float]]"));
  bool load(handle source, bool) {
    array_ = Array::ensure(source);
    if (!array_ || array_.ndim() != 2) return false;
    value = {{array_.data(), static_cast<size_t>(array_.size())},
             static_cast<size_t>(array_.shape(0)),
             static_cast<size_t>(array_.shape(1))};
    return true;
  }

 private:
  Array array_;
};

}  // namespace pybind11::detail

namespace introspect::python {

/// Means over clusters and studies, a part of bind_statistics.
void bind_clusters(py::module_& m);

}  // namespace introspect::python
