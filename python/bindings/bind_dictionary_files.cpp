#include "bindings.h"

#include "introspect/io/npz.h"
#include "introspect/sae/files.h"

namespace introspect::python {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

sae::DictionaryFormat parse_format(const std::string& name) {
  if (name == "saelens") return sae::DictionaryFormat::saelens;
  if (name == "circuit_tracer") return sae::DictionaryFormat::circuit_tracer;
  throw std::invalid_argument("save_dictionary: format must be saelens or circuit_tracer, got " + name);
}

sae::Dictionary load(const std::filesystem::path& path, const std::string& format,
                     std::optional<torch::ScalarType> dtype, torch::Device device,
                     std::optional<int64_t> layer, std::optional<int64_t> k,
                     std::optional<double> input_scale, const std::optional<sae::DictionaryOrigin>& origin) {
  return sae::load_dictionary(
      path, {format, dtype, device, layer, k, input_scale, origin.value_or(sae::DictionaryOrigin{})});
}

sae::CrossLayerTranscoder load_cross_layer(const std::filesystem::path& folder,
                                           std::optional<torch::ScalarType> dtype, torch::Device device,
                                           const std::optional<sae::DictionaryOrigin>& origin) {
  sae::LoadOptions options{.dtype = dtype, .device = device};
  options.origin = origin.value_or(sae::DictionaryOrigin{});
  return sae::load_cross_layer_transcoder(folder, options);
}

std::map<std::string, torch::Tensor> read_npz(const std::filesystem::path& path) {
  const auto file = io::NpzFile::open(path);
  std::map<std::string, torch::Tensor> out;
  for (const auto& name : file->names()) out[name] = file->array(name);
  return out;
}

}  // namespace

void bind_dictionary_files(py::module_& m) {
  m.def("read_npz", &read_npz, py::arg("path"), NoGil(), R"doc(
Read the arrays of numpy.savez, or the one of a .npy file, which is called "arr_0".

Numbers and truths of either byte order, in C's or Fortran's order. Nothing in the file is executed.

Returns:
    CPU tensors by name, in the dtypes of the file.

Raises:
    IoError: the file is missing, damaged or compressed, or holds objects, structures, text, dates or raw bytes.
)doc");
  m.def("dictionary_formats", &sae::dictionary_formats,
        "Names of the formats that load_dictionary reads, each with what its file or folder holds.");
  m.def("dictionary_layers", &sae::dictionary_layers, py::arg("folder"),
        "The layers of a folder that holds a file for each; none for every other path.");
  m.def("load_dictionary", &load, py::arg("path"), py::kw_only(), py::arg("format") = "",
        py::arg("dtype") = py::none(), py::arg("device") = torch::Device(torch::kCPU),
        py::arg("layer") = py::none(), py::arg("k") = py::none(), py::arg("input_scale") = py::none(),
        py::arg("origin") = py::none(), NoGil(), R"doc(
Read a dictionary of any format, from its file or folder: see introspect.SAE.load.

Args:
    format: one of dictionary_formats(); found out if empty.
    dtype: that of the stored decoder if not given.
    layer: of a folder that holds a file for each.
    k: of top-k files that do not say it.
    input_scale: of files whose inputs were scaled by a number that they do not say.
    origin: a DictionaryOrigin, which stands where the file says nothing.

Raises:
    IoError: the file is missing or damaged, or its tensors fit no dictionary.
    ConfigError: an unknown format, architecture or activation, or a number that is missing.
)doc");
  m.def(
      "save_dictionary",
      [](const sae::Dictionary& dictionary, const std::filesystem::path& folder, const std::string& format) {
        sae::save_dictionary(dictionary, folder, parse_format(format));
      },
      py::arg("dictionary"), py::arg("folder"), py::kw_only(), py::arg("format") = "saelens", NoGil(), R"doc(
Write a dictionary, each file whole or not at all: see introspect.SAE.save.

Args:
    folder: of its own for "saelens", of one transcoder a layer for "circuit_tracer"; made if it is not there.

Raises:
    ConfigError: the format cannot hold it, or the folder is of another model or other hook points.
    IoError: it cannot be written.
)doc");
  m.def("load_cross_layer_transcoder", &load_cross_layer, py::arg("folder"), py::kw_only(),
        py::arg("dtype") = py::none(), py::arg("device") = torch::Device(torch::kCPU),
        py::arg("origin") = py::none(), NoGil(), R"doc(
Read a cross-layer transcoder from its folder, circuit-tracer's or Gemma Scope 2's: see introspect.CrossLayerTranscoder.load.

Raises:
    IoError: a file is missing or damaged.
    ConfigError: the folder holds no such files.
)doc");
  m.def("save_cross_layer_transcoder", &sae::save_cross_layer_transcoder, py::arg("transcoder"),
        py::arg("folder"), NoGil(), R"doc(
Write a cross-layer transcoder as circuit-tracer has it: see introspect.CrossLayerTranscoder.save.

Raises:
    ConfigError: the format cannot hold it: a skip, or another activation than relu and jumprelu.
    IoError: it cannot be written.
)doc");
}

}  // namespace introspect::python
