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

  py::class_<Store, std::shared_ptr<Store>>(m, "Store", R"doc(
Finished readings of experiments on disk, by the hash of what was computed.

A killed process leaves every finished reading, and several processes may use one store.
)doc")
      .def(py::init(&Store::open), py::arg("path"), "Opens or creates the file. Raises IoError.")
      .def("get", &Store::get, py::arg("key"), py::call_guard<py::gil_scoped_release>())
      .def("put", &Store::put, py::arg("key"), py::arg("value"), py::call_guard<py::gil_scoped_release>())
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
