#include "bindings.h"

#include "introspect/experiments/run.h"

namespace introspect::python {
namespace {

using namespace experiments;

py::list turns(const Conversation& conversation) {
  py::list out;
  for (const auto& turn : conversation.turns) {
    py::dict message;
    message["role"] = turn.role;
    message["content"] = turn.content;
    out.append(message);
  }
  return out;
}

py::dict as_dict(const Origin& origin) {
  py::dict out;
  out["model"] = origin.model_name;
  out["model_hash"] = origin.model_hash;
  out["dtype"] = origin.dtype;
  out["device"] = origin.device;
  out["protocol"] = origin.protocol;
  out["protocol_hash"] = origin.protocol_hash;
  out["seed"] = origin.seed;
  out["strength_unit"] = origin.strength_unit;
  out["introspect_version"] = origin.introspect_version;
  out["torch_version"] = origin.torch_version;
  return out;
}

py::dict as_dict(const StoredCell& stored) {
  auto out = as_dict(stored.origin);
  const auto& cell = stored.cell;
  out["concept"] = cell.concept_name;
  out["strength"] = cell.strength;
  out["first_layer"] = cell.first_layer;
  out["last_layer"] = cell.last_layer;
  out["question"] = cell.question;
  out["kind"] = cell.kind;
  out["question_kind"] = cell.question_kind;
  out["null_index"] = cell.null_index;
  out["value"] = cell.value;
  out["key"] = cell.key;
  out["base_key"] = cell.base_key;
  out["written"] = stored.written;
  return out;
}

py::dict as_dict(const StoredRun& run) {
  auto out = as_dict(run.origin);
  out["cells"] = run.cells;
  out["first_written"] = run.first_written;
  out["last_written"] = run.last_written;
  return out;
}

template <typename Value>
py::list as_dicts(const std::vector<Value>& values) {
  py::list out;
  for (const auto& value : values) out.append(as_dict(value));
  return out;
}

template <typename Work>
auto without_gil(const Work& work) {
  const py::gil_scoped_release release;
  return work();
}

/// A range is (first, last, whether they are fractions).
using Range = std::tuple<double, double, bool>;

std::string run(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                std::vector<double> strengths, const std::vector<Range>& layers,
                std::optional<std::vector<std::string>> questions, int64_t nulls,
                const std::string& strength_unit, uint64_t seed, std::shared_ptr<Store> store,
                int64_t batch_bytes, py::object progress) {
  ExperimentOptions options;
  options.strengths = std::move(strengths);
  options.layers.clear();
  for (const auto& [first, last, is_fraction] : layers) options.layers.push_back({first, last, is_fraction});
  options.questions = std::move(questions);
  options.nulls = nulls;
  options.strength_unit = parse_strength_unit(strength_unit);
  options.seed = seed;
  options.store = std::move(store);
  options.batch_bytes = batch_bytes;
  options.progress = as_progress(std::move(progress));
  const py::gil_scoped_release release;
  return run_experiment(model, protocol, vectors, options).to_json();
}

}  // namespace

void bind_experiments(py::module_& m) {
  py::class_<Protocol>(m, "Protocol", R"doc(
One introspection experiment as data: turns, the injected messages, what is read, and control questions.

A file is a JSON object with the fields name, turns ([{role, content}]) and injected (neighbouring indices into turns),
and optionally source, read ("yes_no", "content" or "sample"), steer_generation, yes_token, no_token, report_tokens
({concept: word}), sampling ({max_new_tokens, temperature, top_p, top_k}) and controls ({turns, injected, questions} with
$QUESTION in the turns, or the name of such a file beside it).
)doc")
      .def_static("parse", &Protocol::parse, py::arg("json"),
                  "A protocol from its JSON text. Raises ConfigError that names the place of a mistake.")
      .def_static(
          "load", &Protocol::load, py::arg("path"),
          "A protocol from its file. Raises IoError, and ConfigError that names the place of a mistake.")
      .def_readonly("name", &Protocol::name)
      .def_readonly("source", &Protocol::source)
      .def_property_readonly("turns", [](const Protocol& p) { return turns(p.conversation); })
      .def_property_readonly("injected", [](const Protocol& p) { return p.conversation.injected; })
      .def_property_readonly("read", [](const Protocol& p) { return to_string(p.read); })
      .def_readonly("steer_generation", &Protocol::steer_generation)
      .def_readonly("yes_token", &Protocol::yes_token)
      .def_readonly("no_token", &Protocol::no_token)
      .def_readonly("control_questions", &Protocol::control_questions)
      .def_property_readonly("own_question", &Protocol::own_question, "The last message of the user.")
      .def_property_readonly("hash", &Protocol::hash, "Hex SHA-256 of to_json().")
      .def("to_json", &Protocol::to_json, "The protocol in the file's format, with the controls inside.")
      .def("__repr__",
           [](const Protocol& p) { return "Protocol('" + p.name + "', read='" + to_string(p.read) + "')"; });

  py::class_<Merged::Conflict>(m, "StoreConflict", "Two values that two stores have for one key.")
      .def_readonly("key", &Merged::Conflict::key)
      .def_readonly("kept", &Merged::Conflict::kept)
      .def_readonly("other", &Merged::Conflict::other);
  py::class_<Merged>(m, "StoreMerged", "What merging another store did.")
      .def_readonly("added", &Merged::added)
      .def_readonly("same", &Merged::same, "Cells that were here before, with the same value.")
      .def_readonly("conflicts", &Merged::conflicts);

  py::class_<Store, std::shared_ptr<Store>>(m, "Store", R"doc(
Finished readings of experiments on disk, by the hash of what was computed.

One SQLite file in write-ahead mode. A killed process leaves every finished reading and a sound file, and several
processes may use one store: of two values for one key the first stays. A reading that several protocols or settings
share is one cell and stands under the first that made it.
)doc")
      .def(py::init(&Store::open), py::arg("path"),
           "Opens or creates the file. Raises IoError for a file that is no store or of another layout.")
      .def("get", &Store::get, py::arg("key"), py::call_guard<py::gil_scoped_release>(),
           "The value (JSON) of a key, or None.")
      .def(
          "rows", [](const Store& store) { return as_dicts(without_gil([&] { return store.rows(); })); },
          "Every cell as a dictionary, in the order of writing: setting, value (JSON) and what made it.")
      .def(
          "runs", [](const Store& store) { return as_dicts(without_gil([&] { return store.runs(); })); },
          "Everything that made cells (model, protocol, seed, versions, ...), with their number and times.")
      .def("merge", &Store::merge, py::arg("other"), py::call_guard<py::gil_scoped_release>(), R"doc(
Takes over the cells of another store's file; where both have a key, this store's value stays.

Raises:
    IoError: no such file, or no store.
    ValueError: it is this store.
)doc")
      .def("problems", &Store::problems, py::call_guard<py::gil_scoped_release>(),
           "What SQLite finds wrong with the file; empty when it is sound.")
      .def("vacuum", &Store::vacuum, py::call_guard<py::gil_scoped_release>(),
           "Gives unused space back to the file system.")
      .def("__len__", &Store::size)
      .def_property_readonly("path", &Store::path);

  m.def("run_experiment", &run, py::arg("model"), py::arg("protocol"), py::kw_only(), py::arg("vectors"),
        py::arg("strengths"), py::arg("layers"), py::arg("questions"), py::arg("nulls"),
        py::arg("strength_unit"), py::arg("seed"), py::arg("store"), py::arg("batch_bytes"),
        py::arg("progress"),
        "The result of introspect.run_experiment as JSON; layers are (first, last, whether they are "
        "fractions).");
}

}  // namespace introspect::python
