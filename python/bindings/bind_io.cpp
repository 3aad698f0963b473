#include "bindings.h"

#include "introspect/core/sha256.h"
#include "introspect/io/file.h"
#include "introspect/io/gguf.h"
#include "introspect/io/gguf_writer.h"
#include "introspect/io/hf_folder.h"
#include "introspect/io/safetensors.h"

namespace introspect::python {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
std::shared_ptr<T> as_held(const std::shared_ptr<const T>& source) {
  return std::const_pointer_cast<T>(
      source);  // pybind11 holds pointers to mutable values; every method bound is const
}

void bind_sources(py::module_& m) {
  py::class_<io::TensorSource, std::shared_ptr<io::TensorSource>>(
      m, "TensorSource", "Named tensors in files, read on demand. Safe to use from several threads.")
      .def("names", &io::TensorSource::names, "The tensors' names, in the order of the file.")
      .def("__contains__", &io::TensorSource::has, py::arg("name"))
      .def("shape", &io::TensorSource::shape, py::arg("name"),
           "A tensor's shape in torch's order. Raises IoError for an absent name.")
      .def("dtype", &io::TensorSource::dtype, py::arg("name"),
           "The stored encoding in the format's own word, such as 'BF16' or 'Q4_K'. Raises IoError for an "
           "absent name.")
      .def("stored_bytes", &io::TensorSource::stored_bytes, py::arg("name"),
           "Bytes that are stored of a tensor. Raises IoError for an absent name.")
      .def("check_readable", &io::TensorSource::check_readable, py::arg("name"),
           "Raises IoError for an absent name, ConfigError for an encoding that cannot be read as floats.")
      .def("read", &io::TensorSource::read, py::arg("name"), py::kw_only(),
           py::arg("dtype") = torch::kFloat32, NoGil(),
           R"doc(
Read a tensor, converted or dequantised on all threads.

Args:
    name: one of ``names()``.
    dtype: float64, float32, float16 or bfloat16. Quantised values are computed in float32 and rounded once.

Returns:
    A CPU tensor with its own storage.

Raises:
    IoError: no tensor has this name.
    ConfigError: it is stored as integers or in an unknown quantisation.
    ShapeError: ``dtype`` is another one.
)doc")
      .def(
          "read_into",
          [](const io::TensorSource& source, const std::string& name, torch::Tensor out) {
            source.read_into(name, out);
          },
          py::arg("name"), py::arg("out"), NoGil(), R"doc(
Read a tensor straight into an existing one, such as rows of a fused weight.

Args:
    name: one of ``names()``.
    out: contiguous CPU tensor of the stored shape in float64, float32, float16 or bfloat16.

Raises:
    IoError: no tensor has this name.
    ConfigError: it is stored as integers or in an unknown quantisation.
    ShapeError: ``out`` is not such a tensor.
)doc")
      .def("fingerprint", &io::TensorSource::fingerprint, NoGil(), R"doc(
What makes a checkpoint this one, cheaply.

Returns:
    The SHA-256, in hexadecimal, over every tensor's name, shape, encoding and first and last 4 KiB of stored bytes.
)doc");

  m.def(
      "open_tensors", [](const std::filesystem::path& path) { return as_held(io::open_tensors(path)); },
      py::arg("path"), NoGil(), R"doc(
Open whatever holds tensors: a .safetensors file or its index, a GGUF file, or an HF folder.

Args:
    path: file or folder. Files are mapped, not read.

Raises:
    IoError: the file is missing, truncated or corrupt.
    ConfigError: the format is another one. Pickles are never opened, because they run code.
)doc");
}

void bind_safetensors(py::module_& m) {
  py::class_<io::SafetensorsFile, io::TensorSource, std::shared_ptr<io::SafetensorsFile>>(
      m, "SafetensorsFile", "A .safetensors file, mapped and checked as a whole when it is opened.")
      .def(py::init(
               [](const std::filesystem::path& path) { return as_held(io::SafetensorsFile::open(path)); }),
           py::arg("path"), NoGil(), "Raises IoError for a file that is missing, truncated or corrupt.")
      .def("metadata", &io::SafetensorsFile::metadata, "The header's ``__metadata__``.");

  m.def("save_safetensors", &io::save_safetensors, py::arg("path"), py::arg("tensors"), py::kw_only(),
        py::arg("metadata") = std::map<std::string, std::string>(), NoGil(), R"doc(
Write a .safetensors file, whole or not at all.

Args:
    path: replaced if it exists, only once everything is on the disk.
    tensors: (name, tensor) pairs, of any device and layout.
    metadata: strings by name.

Raises:
    ValueError: a name is empty, repeated or ``__metadata__``.
    ShapeError: a tensor's dtype is not one of the format's.
    IoError: the file cannot be written, on a full disk for example.
)doc");
}

void bind_gguf(py::module_& m) {
  py::class_<io::GgufFile, io::TensorSource, std::shared_ptr<io::GgufFile>>(
      m, "GgufFile", "A GGUF file, version 2 or 3, mapped and checked as a whole when it is opened.")
      .def(py::init([](const std::filesystem::path& path) { return as_held(io::GgufFile::open(path)); }),
           py::arg("path"), NoGil(),
           "Raises IoError for a file that is missing, truncated or corrupt, ConfigError for a version that "
           "is not 2 or 3.")
      .def("version", &io::GgufFile::version, "The version of the format, 2 or 3.")
      .def("keys", &io::GgufFile::keys, "The metadata's keys, in the order of the file.")
      .def("value", &io::GgufFile::value, py::arg("key"),
           "One metadata value. Raises ConfigError for an absent key, IoError for text that is not UTF-8.")
      .def("metadata", &io::GgufFile::metadata,
           "All metadata by key. Raises IoError for text that is not UTF-8.")
      .def("architecture", &io::GgufFile::architecture,
           "The ``general.architecture`` key. Raises ConfigError if it is absent.");

  py::class_<io::GgufWriter>(m, "GgufWriter", R"doc(
A GGUF file in the making: metadata and float32 tensors, as control vectors are stored.

Args:
    architecture: the ``general.architecture`` key.
)doc")
      .def(py::init<std::string>(), py::arg("architecture"))
      .def("set", &io::GgufWriter::set, py::arg("key"), py::arg("value"), R"doc(
Set a metadata value, replacing what it was.

Args:
    key: not empty.
    value: bool, int (stored as uint32 where it fits, else int32 or 64 bits), float (float32), str, or a list of str,
        int (int32) or float (float32).

Raises:
    ValueError: the key is empty or ``general.alignment``, or text is not UTF-8.
)doc")
      .def("add", &io::GgufWriter::add, py::arg("name"), py::arg("tensor"), R"doc(
Append a tensor, stored as float32.

Args:
    name: 1 to 63 bytes.
    tensor: floating, 1 to 4 dimensions.

Raises:
    ValueError: the name is empty, too long or repeated.
    ShapeError: the tensor is another one.
)doc")
      .def("write", &io::GgufWriter::write, py::arg("path"), NoGil(), R"doc(
Write the file, whole or not at all.

Args:
    path: replaced if it exists, only once everything is on the disk.

Raises:
    IoError: the file cannot be written, on a full disk for example.
)doc");
}

}  // namespace

void bind_io(py::module_& m) {
  bind_sources(m);
  bind_safetensors(m);
  bind_gguf(m);

  py::class_<io::HfFolder>(m, "HfFolder", "A model folder as the Hugging Face hub lays it out.")
      .def(py::init(&io::HfFolder::open), py::arg("folder"), NoGil(), R"doc(
Args:
    folder: holds config.json and model.safetensors or model.safetensors.index.json with its shards.

Raises:
    IoError: one of them is missing or corrupt.
    ConfigError: the weights are there only as pickles, which are never opened because they run code.
)doc")
      .def_readonly("folder", &io::HfFolder::folder)
      .def_readonly("config_json", &io::HfFolder::config_json, "The text of config.json.")
      .def_readonly("generation_config_json", &io::HfFolder::generation_config_json,
                    "The text of generation_config.json, or None.")
      .def_property_readonly(
          "weights", [](const io::HfFolder& folder) { return as_held(folder.weights); }, "The tensors.");

  m.def(
      "sha256_hex", [](const py::bytes& bytes) { return sha256_hex(std::string_view(bytes)); },
      py::arg("bytes"), "The SHA-256 of ``bytes`` as 64 lowercase hexadecimal digits.");
  m.def(
      "write_atomically",
      [](const std::filesystem::path& path, const py::bytes& bytes) {
        const std::string_view contents(bytes);
        const py::gil_scoped_release release;
        io::write_atomically(path, contents);
      },
      py::arg("path"), py::arg("bytes"), R"doc(
Write a file, whole or not at all.

Args:
    path: replaced if it exists, only once everything is on the disk. It keeps its permissions; of a symbolic link, the
        file that it leads to is replaced and the link stays.
    bytes: what the file is to hold.

Raises:
    IoError: the file cannot be written, on a full disk for example.
)doc");
}

}  // namespace introspect::python
