#include "bindings.h"

#include "introspect/cache/kv_cache.h"
#include "introspect/core/check.h"
#include "introspect/models/cache_file.h"

namespace introspect::python {

using cache::KVCache;

void bind_cache(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> release;
  py::class_<KVCache>(m, "KVCache", R"doc(
The keys and values of every layer for the positions seen so far: a value, forked in O(1).

Whatever is done to a fork is never visible in its parent. Keys are stored after RoPE, at absolute positions, and stay
as they are wherever they are put. ``Model.make_cache`` makes one that fits a model.
)doc")
      .def(py::init([](int64_t n_layers, int64_t batch, int64_t n_key_value_heads, int64_t d_head,
                       torch::ScalarType dtype, torch::Device device) {
             return KVCache({n_layers, batch, n_key_value_heads, d_head}, dtype, device);
           }),
           py::kw_only(), py::arg("n_layers"), py::arg("batch") = 1, py::arg("n_key_value_heads"),
           py::arg("d_head"), py::arg("dtype") = torch::kFloat32, py::arg("device") = torch::Device("cpu"),
           R"doc(
An empty cache, for keys and values of one's own: ``append`` to every layer, then ``commit``.

Raises:
    ShapeError: a size that is not positive.
)doc")
      .def_property_readonly(
          "length", [](const KVCache& self) { return self.length(); }, "Positions held.")
      .def_property_readonly(
          "batch", [](const KVCache& c) { return c.shape().batch; }, "Rows of the batch.")
      .def_property_readonly(
          "n_layers", [](const KVCache& c) { return c.shape().n_layers; }, "Layers of the model it fits.")
      .def_property_readonly(
          "n_key_value_heads", [](const KVCache& c) { return c.shape().n_key_value_heads; },
          "Heads of keys and values in each layer.")
      .def_property_readonly(
          "d_head", [](const KVCache& c) { return c.shape().d_head; }, "Width of a head.")
      .def_property_readonly("dtype", &KVCache::dtype)
      .def_property_readonly("device", py::overload_cast<>(&KVCache::device, py::const_))
      .def_property_readonly(
          "mask",
          [](const KVCache& c) {
            return c.mask().defined() ? std::optional<torch::Tensor>(c.mask()) : std::nullopt;
          },
          "Which positions are real tokens: bool [batch, length], or None if all are.")
      .def_property_readonly("nbytes", &KVCache::nbytes,
                             "Bytes that keys and values hold: what lies ready for appends counts, and what "
                             "other caches share.")
      .def_property_readonly("nbytes_own", &KVCache::nbytes_own,
                             "Of these, what no other cache shares: what would be freed with this one.")
      .def_property_readonly("nbytes_shared", &KVCache::nbytes_shared, "Of these, what other caches share.")
      .def_static("total_nbytes", &KVCache::total_nbytes, py::arg("caches"),
                  "Bytes that several caches hold together, what they share counted once.")
      .def("__len__", [](const KVCache& self) { return self.length(); })
      .def("keys", &KVCache::keys, py::arg("layer"),
           "Keys of one layer, [batch, n_key_value_heads, pos, d_head]: a view, not to be written to.")
      .def("values", &KVCache::values, py::arg("layer"),
           "Values of one layer, [batch, n_key_value_heads, pos, d_head]: a view, not to be written to.")
      .def("fork", &KVCache::fork, "The same cache, sharing memory; in O(1).")
      .def("truncate", &KVCache::truncate, py::arg("length"), R"doc(
Forgets all positions from ``length`` on.

Raises:
    IndexError: fewer positions are held.
)doc")
      .def("reserve", &KVCache::reserve, py::arg("length"), py::arg("layer") = py::none(), release, R"doc(
Takes memory for exactly ``length`` positions, so that appends up to there copy nothing unless a fork is first.

Args:
    length: positions.
    layer: of this layer alone; None means all.

Raises:
    IndexError: a layer that is not there.
)doc")
      .def("slice", &KVCache::slice, py::arg("first"), py::arg("last"), release, R"doc(
Positions [first, last) as a cache. A prefix shares memory, in O(1); any other span is a copy.

Keys stay rotated for the positions they had, and what is appended counts from the new length.

Raises:
    IndexError: not 0 <= first <= last <= length.
)doc")
      .def("splice", &KVCache::splice, py::arg("first"), py::arg("last"), py::arg("other"), release, R"doc(
This cache with positions [first, last) taken from the same places of ``other``, of this or of another model.

With ``last`` beyond this cache's end it grows: ``a.slice(0, p).splice(p, len(b), b)`` is a's prefix with b's tail.
Layers in which both share memory stay shared; the others are copies. Whether the other model turns keys by the same
angles (RoPE) cannot be seen here.

Args:
    first: first position replaced, at most this cache's length.
    last: the position after the last one replaced, at most the other's length.
    other: of equal n_layers, n_key_value_heads and d_head, and as many rows, or one row that serves all. Another
        dtype or device is converted to this cache's.

Raises:
    ShapeError: other shapes.
    IndexError: a span outside the caches.
)doc")
      .def_static("concat_rows", &KVCache::concat_rows, py::arg("caches"), release, R"doc(
The caches one under another, as one batch in their order (a copy).

Raises:
    ValueError: no cache.
    ShapeError: lengths, layers, heads, widths, dtypes or devices differ.
)doc")
      .def("select_rows", &KVCache::select_rows, py::arg("rows"), release, R"doc(
The cache of a batch in which each row r is row ``rows[r]`` of this one (a copy).

Raises:
    IndexError: a row that is not there.
)doc")
      .def("select_positions", &KVCache::select_positions, py::arg("positions"), release, R"doc(
The cache of the positions listed, in that order (a copy): the path from the root of a token tree to a node, say.

Raises:
    IndexError: a position that is not there.
)doc")
      .def("append", &KVCache::append, py::arg("layer"), py::arg("keys"), py::arg("values"), release, R"doc(
Adds keys and values [batch, n_key_value_heads, n, d_head] to one layer; ``commit`` makes them part of the cache.

Returns:
    Keys and values of the whole layer: views, not to be written to.

Raises:
    ShapeError: another shape, dtype or device.
    IndexError: a layer that is not there.
)doc")
      .def(
          "commit",
          [](KVCache& c, int64_t n, const std::optional<torch::Tensor>& mask) {
            c.commit(n, mask.value_or(torch::Tensor{}));
          },
          py::arg("n"), py::arg("mask") = py::none(), release, R"doc(
Makes the last ``n`` positions appended to every layer part of the cache.

Args:
    n: positions.
    mask: which of them are real tokens, bool [batch, n]; None means all.

Raises:
    Error: a layer to which another number was appended.
    ShapeError: a mask of another shape.
)doc")
      .def("rollback", &KVCache::rollback, "Drops what was appended since the last commit.")
      .def("save", &models::save_cache, py::arg("path"), py::arg("model_hash") = "", release, R"doc(
Writes the cache as a .safetensors file, in its own dtype; the file is complete or not there.

Args:
    path: tensors keys.{layer}, values.{layer} and, with padding, mask; shape, length and model in the metadata.
    model_hash: ``model.native.hash`` of the model that made it.

Raises:
    IoError: the file cannot be written.
)doc")
      .def_static("load", &models::load_cache, py::arg("path"), py::arg("model_hash") = "",
                  py::arg("device") = torch::Device("cpu"), release, R"doc(
Reads a cache that ``save`` wrote.

Args:
    path: the file.
    model_hash: the cache must be of this model, if the file names one.
    device: where the cache is to live.

Raises:
    IoError: a file that is missing, broken or holds no cache.
    ConfigError: the cache is of another model.
)doc")
      .def("__repr__", [](const KVCache& c) {
        const auto& s = c.shape();
        return concat("<KVCache of ", c.length(), " positions: ", s.n_layers, " layers, batch ", s.batch,
                      ", ", s.n_key_value_heads, " heads of ", s.d_head, ">");
      });
}

}  // namespace introspect::python
