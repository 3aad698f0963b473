#include "bindings.h"

#include "introspect/cache/kv_cache.h"

namespace introspect::python {

using cache::KVCache;

void bind_cache(py::module_& m) {
  py::class_<KVCache>(m, "KVCache", R"doc(
The keys and values of every layer for the positions seen so far: a value, forked in O(1).

Whatever is done to a fork is never visible in its parent. Keys are stored after RoPE. ``Model.make_cache`` makes one.
)doc")
      .def_property_readonly("length", &KVCache::length, "Positions held.")
      .def_property_readonly(
          "batch", [](const KVCache& c) { return c.shape().batch; }, "Rows of the batch.")
      .def_property_readonly(
          "n_layers", [](const KVCache& c) { return c.shape().n_layers; }, "Layers of the model it fits.")
      .def_property_readonly(
          "mask",
          [](const KVCache& c) {
            return c.mask().defined() ? std::optional<torch::Tensor>(c.mask()) : std::nullopt;
          },
          "Which positions are real tokens: bool [batch, length], or None if all are.")
      .def_property_readonly("nbytes", &KVCache::nbytes, "Bytes of memory held, shared with forks or not.")
      .def("__len__", &KVCache::length)
      .def("keys", &KVCache::keys, py::arg("layer"),
           "Keys of one layer, [batch, n_key_value_heads, pos, d_head]: a view.")
      .def("values", &KVCache::values, py::arg("layer"),
           "Values of one layer, [batch, n_key_value_heads, pos, d_head]: a view.")
      .def("fork", &KVCache::fork, "The same cache, sharing memory; in O(1).")
      .def("truncate", &KVCache::truncate, py::arg("length"), R"doc(
Forgets all positions from ``length`` on.

Raises:
    IndexError: fewer positions are held.
)doc")
      .def("reserve", &KVCache::reserve, py::arg("length"),
           "Takes memory for ``length`` positions now, so that appends up to it copy nothing.")
      .def("select_rows", &KVCache::select_rows, py::arg("rows"), py::call_guard<py::gil_scoped_release>(),
           R"doc(
The cache of a batch in which each row r is row ``rows[r]`` of this one (a copy).

Raises:
    IndexError: a row that is not there.
)doc");
}

}  // namespace introspect::python
