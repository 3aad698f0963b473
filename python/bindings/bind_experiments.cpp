#include "readouts.h"

#include "introspect/experiments/estimate.h"
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
  for_each_field(static_cast<const Setting&>(cell),
                 [&](const char* name, const auto& value) { out[name] = value; });
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

py::dict as_dict(const Store::Damaged& damaged) {
  py::dict out;
  out["key"] = damaged.key;
  out["what"] = damaged.what;
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

/// A store whose __init__ has not run has no holder: pybind11 then raises where a reference would be to nothing.
using Held = std::shared_ptr<Store>;

/// A range is (first, last, whether they are fractions).
using Range = std::tuple<double, double, bool>;

/// An experiment from the fields that introspect.studies.Experiment gives, all of them there.
Experiment as_experiment(const py::dict& given) {
  const auto field = [&](const char* name) -> py::object { return given[name]; };
  Experiment out{field("protocol").cast<Protocol>(), field("vectors").cast<NamedVectors>(), {}};
  auto& options = out.options;
  options.strengths = field("strengths").cast<std::optional<std::vector<double>>>();
  if (const auto unit = field("strength_unit").cast<std::optional<std::string>>())
    options.strength_unit = parse_strength_unit(*unit);
  using Own = std::vector<std::tuple<std::string, int64_t, int64_t, std::vector<double>>>;
  for (const auto& [name, first, last, strengths] : field("own_strengths").cast<Own>())
    options.own_strengths.push_back({name, first, last, strengths});
  options.layers.clear();
  for (const auto& [first, last, is_fraction] : field("layers").cast<std::vector<Range>>())
    options.layers.push_back({first, last, is_fraction});
  options.parts.clear();
  for (const auto& [first, last] : field("parts").cast<std::vector<std::pair<double, double>>>())
    options.parts.push_back({first, last});
  options.questions = field("questions").cast<std::optional<std::vector<std::string>>>();
  using Groups = std::vector<std::pair<std::string, std::vector<std::string>>>;
  if (const auto groups = field("groups").cast<std::optional<Groups>>()) {
    options.groups.emplace();
    for (const auto& [name, questions] : *groups) options.groups->push_back({name, questions});
  }
  options.controls = field("controls").cast<std::optional<std::string>>();
  options.control_filter = field("control_filter").cast<std::optional<double>>();
  options.nulls = field("nulls").cast<int64_t>();
  options.null_vectors =
      field("null_vectors").cast<std::map<std::string, std::vector<steering::ControlVector>>>();
  options.null_factors = field("null_factors").cast<std::map<std::string, std::vector<double>>>();
  options.concepts = field("concepts").cast<std::vector<std::string>>();
  for (const auto& [name, model] :
       field("models").cast<std::map<std::string, std::shared_ptr<models::Model>>>())
    options.models[name] = model;
  options.seed = field("seed").cast<uint64_t>();
  for (const auto& [name, parameter] : field("readouts").cast<py::dict>()) {
    const auto text = name.cast<std::string>();
    options.readouts[text] = as_value(parameter, "run_experiment: " + text + " must be");
  }
  options.directions = field("directions").cast<NamedVectors>();
  return out;
}

std::vector<std::string> run(const std::shared_ptr<models::Model>& model, const std::vector<py::dict>& given,
                             std::shared_ptr<Store> store, int64_t memory_budget, py::object progress,
                             py::object work, py::object before, bool only_plan, double pass_seconds) {
  std::vector<Experiment> experiments;
  for (const auto& one : given) experiments.push_back(as_experiment(one));
  SharedOptions shared;
  shared.store = std::move(store);
  shared.memory_budget = memory_budget;
  shared.pass_seconds = pass_seconds;
  shared.progress = as_progress(std::move(progress));
  shared.work = as_progress(std::move(work));
  if (!before.is_none()) {
    const std::shared_ptr<py::object> held(new py::object(std::move(before)), [](py::object* object) {
      const py::gil_scoped_acquire acquire;
      delete object;
    });
    shared.before = [held](const RunPlan& plan) {
      const py::gil_scoped_acquire acquire;
      (*held)(plan);
    };
  }
  const py::gil_scoped_release release;
  if (only_plan) {
    shared.before(plan_experiments(model, std::move(experiments), shared));
    return {};
  }
  std::vector<std::string> out;
  for (const auto& result : run_experiments(model, std::move(experiments), shared))
    out.push_back(result.to_json());
  return out;
}

py::list passages(const Conversation& conversation) {
  py::list out;
  for (const auto& [turn, text] : conversation.passages) out.append(py::make_tuple(turn, text));
  return out;
}

std::vector<LayerEstimate> estimate(const models::Model& model, const Protocol& protocol,
                                    const NamedVectors& vectors, std::optional<std::vector<double>> strengths,
                                    std::optional<std::vector<std::string>> questions,
                                    std::optional<std::string> controls, int64_t nulls,
                                    const std::optional<std::string>& strength_unit, uint64_t seed,
                                    py::object progress) {
  EstimateOptions options;
  options.strengths = std::move(strengths);
  options.questions = std::move(questions);
  options.nulls = nulls;
  if (strength_unit) options.strength_unit = parse_strength_unit(*strength_unit);
  options.controls = std::move(controls);
  options.seed = seed;
  options.progress = as_shown_progress(std::move(progress));
  const py::gil_scoped_release release;
  return estimate_layers(model, protocol, vectors, options);
}

}  // namespace

void bind_experiments(py::module_& m) {
  py::class_<Protocol>(m, "Protocol", R"doc(
One introspection experiment as data: turns, the injected messages, what is read, and control questions.

A file is a JSON object. name, turns ([{role, content}]) and injected are needed; the rest may be left out.

    based_on        a file beside this one whose fields hold where this one gives none
    source          where the texts come from
    injected        indices into turns, ascending; or [{turn, text}]: passages of messages
    inject          {by: "vector"}, "random" (directions of the vector's lengths), "model" (model: a name among
                    run_experiment's models, which prefills the spans), "tokens" (turns: the same messages with $CONCEPT
                    written into the injected ones; priming), "patch" (turns, of as many tokens: their residuals
                    replace the spans'), "swap" (text: as many tokens of it stand in the spans' place, and their residuals
                    replace the spans'), "noise" (a Gaussian direction of the vector's length at every token and block),
                    "dropout" (rate: elements of the blocks' outputs set to zero) or "scale" (the outputs times
                    1 + strength). texts: {concept: what stands for $CONCEPT}
    relative_strength  factor on a run's strengths
    read            "yes_no", "content" or "sample"
    readouts        {name: parameter}: what is read besides the log-odds. lens, attention, divergence,
                    injected_kl: true; top_k: number; continuations: texts; and the names of readouts that a program
                    registers
    steer_generation   true keeps the vector on after the spans
    yes_token, no_token        one token each
    yes_variants, no_variants  spellings whose probabilities the lens sums up
    report_tokens   {concept: word}
    paraphrases     texts, or {question, prefix, name}: each is asked in the place of the last user message, and so is
                    that message itself; rows carry the name, which is the text (and prefix) where none is given
    asks_own_question  false: with paraphrases, the last user message itself is not asked
    sentences       instead of injected: $SENTENCES in a turn stands for them, and each is a passage
    answers         one token for each passage: each is injected alone, and these are read (localisation)
    sampling        {max_new_tokens, temperature, top_p, top_k}
    controls        {questions, groups, question, turns, injected, name, asked_in}, or the name of such a file beside.
                    groups: {name: questions} besides, whose rows have a group. They are
                    asked in the protocol's own conversation in the place of the last user message, in the words of
                    question (with $QUESTION). turns and injected are another conversation, called name, that a run may
                    ask them in instead (run_experiment's controls); asked_in says where unless a run does
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
      .def_property_readonly(
          "passages", [](const Protocol& p) { return passages(p.conversation); },
          "(turn, text) of what is injected where it is not whole messages.")
      .def_property_readonly("inject", [](const Protocol& p) { return to_string(p.inject); })
      .def_readonly("relative_strength", &Protocol::relative_strength)
      .def_property_readonly(
          "paraphrases",
          [](const Protocol& p) {
            py::list out;
            for (const auto& [question, prefix, name] : p.paraphrases)
              out.append(py::make_tuple(question, prefix));
            return out;
          },
          "(question, prefix); an empty prefix is the turns' own.")
      .def_property_readonly(
          "paraphrase_names",
          [](const Protocol& p) {
            std::vector<std::string> out;
            for (const auto& paraphrase : p.paraphrases) out.push_back(paraphrase.label());
            return out;
          },
          "What rows call the paraphrases; the last user message itself is 'own'.")
      .def_readonly("asks_own_question", &Protocol::asks_own_question)
      .def_readonly("answers", &Protocol::answers)
      .def_property_readonly("read", [](const Protocol& p) { return to_string(p.read); })
      .def_readonly("steer_generation", &Protocol::steer_generation)
      .def_readonly("yes_token", &Protocol::yes_token)
      .def_readonly("no_token", &Protocol::no_token)
      .def_readonly("control_questions", &Protocol::control_questions)
      .def_property_readonly(
          "control_groups",
          [](const Protocol& p) {
            std::map<std::string, std::vector<std::string>> out;
            for (const auto& [name, questions] : p.control_groups) out[name] = questions;
            return out;
          },
          "More control questions, by the name of their group.")
      .def_property_readonly(
          "control_conversations",
          [](const Protocol& p) {
            std::vector<std::string> out{kOwnConversation};
            if (p.control) out.push_back(p.control_name);
            return out;
          },
          "Where control questions can be asked: run_experiment's controls.")
      .def_property_readonly(
          "controls", [](const Protocol& p) { return p.controls_in.value_or(kOwnConversation); },
          "Where they are asked unless a run says otherwise.")
      .def("is_own", &Protocol::is_own, py::arg("conversation"),
           "Whether that one of the control_conversations is the protocol's own but for the question.")
      .def("with_controls_in", &Protocol::with_controls_in, py::arg("other"), R"doc(
The same protocol with another one's conversation, under its name, for the control questions.

Raises:
    ConfigError: a conversation in which no question can be asked.
)doc")
      .def_property_readonly("own_question", &Protocol::own_question, "The last message of the user.")
      .def_property_readonly("hash", &Protocol::hash, "Hex SHA-256 of to_json().")
      .def("to_json", &Protocol::to_json, "The protocol in the file's format, with the controls inside.")
      .def("__copy__", [](const Protocol& p) { return p; })
      .def(
          "__deepcopy__", [](const Protocol& p, const py::dict&) { return p; }, py::arg("memo"))
      .def(py::pickle([](const Protocol& p) { return p.to_json(); },
                      [](const std::string& json) { return Protocol::parse(json); }))
      .def("__repr__",
           [](const Protocol& p) { return "Protocol('" + p.name + "', read='" + to_string(p.read) + "')"; });

  py::class_<Merged::Conflict>(m, "StoreConflict", "Two values that two stores have for one key.")
      .def_readonly("key", &Merged::Conflict::key)
      .def_readonly("kept", &Merged::Conflict::kept)
      .def_readonly("other", &Merged::Conflict::other);
  py::class_<Merged>(m, "StoreMerged", "What merging another store did.")
      .def_readonly("added", &Merged::added)
      .def_readonly("same", &Merged::same, "Cells that were here before, with the same value.")
      .def_readonly("conflicts", &Merged::conflicts)
      .def_readonly("damaged", &Merged::damaged, "Cells that were left out: no readings.");

  py::class_<RunPlan>(m, "RunPlan",
                      "What a run takes, known before it starts: see introspect.ExperimentPlan.")
      .def_readonly("readings", &RunPlan::readings)
      .def_readonly("found", &RunPlan::found)
      .def_readonly("token_layers_asked", &RunPlan::token_layers_asked)
      .def_readonly("token_layers_to_run", &RunPlan::token_layers_to_run)
      .def_readonly("seconds", &RunPlan::seconds)
      .def_readonly("peak_bytes", &RunPlan::peak_bytes)
      .def_readonly("passes", &RunPlan::passes)
      .def_readonly("bytes_read", &RunPlan::bytes_read);

  py::class_<Store, std::shared_ptr<Store>>(m, "Store", R"doc(
Finished readings of experiments on disk, by the hash of what was computed.

One SQLite file in write-ahead mode. A killed process leaves every finished reading and a sound file, and several
processes may use one store: of two values for one key the first stays. A reading that several protocols or settings
share is one cell, and a row of each of them.
)doc")
      .def(py::init(&Store::open), py::arg("path"), py::kw_only(), py::arg("read_only") = false, R"doc(
Opens or creates the file; one that is there and cannot be written can be read.

Args:
    read_only: open a file that is there, and change nothing of it.

Raises:
    IoError: a file that is no store, has other tables or another layout, or a damaged write-ahead log.
)doc")
      .def(
          "get", [](const Held& store, const std::string& key) { return store->get(key); }, py::arg("key"),
          py::call_guard<py::gil_scoped_release>(), "The value (JSON) of a key, or None.")
      .def(
          "rows", [](const Held& store) { return as_dicts(without_gil([&] { return store->rows(); })); },
          "Every cell as a dictionary, in the order of writing: setting, value (JSON) and what made it.")
      .def(
          "asked", [](const Held& store) { return as_dicts(without_gil([&] { return store->asked(); })); },
          "What runs have asked for, as rows() has it but under each run's own name; a value that is not "
          "there yet "
          "is ''.")
      .def(
          "runs", [](const Held& store) { return as_dicts(without_gil([&] { return store->runs(); })); },
          "Everything that made cells (model, protocol, seed, versions, ...), with their number and times.")
      .def(
          "merge",
          [](const Held& store, const std::filesystem::path& other,
             const std::optional<std::filesystem::path>& unless_in) {
            return store->merge(other, true, unless_in.value_or(""));
          },
          py::arg("other"), py::kw_only(), py::arg("unless_in") = py::none(),
          py::call_guard<py::gil_scoped_release>(), R"doc(
Takes over the cells of another store's file, which is only read; where both have a key, this store's value stays.
Cells that are ``damaged`` are left out and counted.

Args:
    unless_in: a third store: only cells that it lacks, and nothing of what runs have asked for.

Raises:
    IoError: no such file, or no store.
    ValueError: it is this store.
)doc")
      .def(
          "problems", [](const Held& store) { return store->problems(); },
          py::call_guard<py::gil_scoped_release>(),
          "What is wrong with the file, by SQLite's own check, and with its log; empty when it is sound.")
      .def(
          "damaged",
          [](const Held& store) { return as_dicts(without_gil([&] { return store->damaged(); })); },
          "Cells whose values cannot be what a run has read (no reading, a probability of 7): key and what.")
      .def(
          "vacuum", [](const Held& store) { store->vacuum(); }, py::call_guard<py::gil_scoped_release>(),
          "Gives unused space back to the file system.")
      .def(
          "put_dose",
          [](const Held& store, const std::string& key, const std::string& value,
             const std::string& concept_name, const std::map<std::string, std::string>& origin,
             uint64_t seed) {
            Cell cell{key, value};
            cell.kind = "dose";
            cell.concept_name = concept_name;
            const auto at = [&](const char* name) { return origin.at(name); };
            return store->put(cell, {at("model"), at("model_hash"), at("dtype"), at("device"), at("protocol"),
                                     at("protocol_hash"), seed, at("strength_unit"), at("introspect_version"),
                                     at("torch_version")});
          },
          py::arg("key"), py::arg("value"), py::arg("concept"), py::arg("origin"), py::arg("seed"),
          py::call_guard<py::gil_scoped_release>(),
          "Keeps the doses (a JSON list) of one vector's injections; whether they were not there before.")
      .def_property_readonly("can_write", [](const Held& store) { return store->can_write(); })
      .def("__len__", [](const Held& store) { return store->size(); })
      .def_property_readonly("path", [](const Held& store) { return store->path(); });

  // Read by the Python side, so that its defaults are these.
  m.attr("default_strength") = kDefaultStrength;
  m.attr("default_nulls") = kDefaultNulls;
  m.attr("default_layers") = py::make_tuple(kDefaultFirst, kDefaultLast);
  py::list setting_fields;
  Setting any;
  for_each_field(any, [&](const char* name, const auto&) { setting_fields.append(name); });
  m.attr("setting_fields") = py::tuple(setting_fields);
  m.attr("kept_mass") = kKeptMass;
  m.attr("least_mass") = kLeastMass;

  m.def("run_experiments", &run, py::arg("model"), py::arg("experiments"), py::kw_only(), py::arg("store"),
        py::arg("memory_budget"), py::arg("progress"), py::arg("work"), py::arg("before"),
        py::arg("only_plan"), py::arg("pass_seconds"),
        "The results of experiments that run together as JSON. Each is a dictionary of run_experiment's "
        "arguments, "
        "all of them there; layers are (first, last, whether they are fractions) and groups pairs. ``work`` "
        "is told "
        "the token-layers done and to do, ``before`` the RunPlan; with ``only_plan`` nothing else happens.");

  m.def(
      "blocks_of_fractions",
      [](double first, double last, int64_t n_layers) {
        return LayerRange::fractions(first, last).resolve(n_layers);
      },
      py::arg("first"), py::arg("last"), py::arg("n_layers"), R"doc(
The first and the last block that fractions of the depth stand for: f is block round(f n_layers), at most the last one.

Raises:
    IndexError: fractions out of order or not from 0 to 1.
)doc");
  m.def(
      "conversation_tokens",
      [](const models::Model& model, const Protocol& protocol, const std::optional<std::string>& question,
         const std::optional<std::string>& controls) {
        const auto where = controls ? *controls : protocol.controls_in.value_or(kOwnConversation);
        const auto tokens = tokenize(question ? protocol.ask(*question, where) : protocol.conversation,
                                     model.tokenizer(), model.chat_template());
        return std::make_tuple(tokens.before, tokens.injected, tokens.after);
      },
      py::arg("model"), py::arg("protocol"), py::arg("question") = py::none(),
      py::arg("controls") = py::none(),
      "Token ids before, in and after the injected messages: see introspect.conversation_tokens.");

  py::class_<LayerEstimate>(m, "LayerEstimate",
                            "What one injection is estimated to do to one question's log-odds.")
      .def_readonly("concept", &LayerEstimate::concept_name)
      .def_readonly("strength", &LayerEstimate::strength)
      .def_readonly("question", &LayerEstimate::question)
      .def_readonly("question_kind", &LayerEstimate::question_kind)
      .def_readonly("null_index", &LayerEstimate::null_index)
      .def_readonly("log_odds_base", &LayerEstimate::log_odds_base)
      .def_readonly("by_layer", &LayerEstimate::by_layer)
      .def_readonly("asked_in", &LayerEstimate::asked_in);
  m.def("estimate_layers", &estimate, py::arg("model"), py::arg("protocol"), py::kw_only(),
        py::arg("vectors"), py::arg("strengths"), py::arg("questions"), py::arg("controls"), py::arg("nulls"),
        py::arg("strength_unit"), py::arg("seed"), py::arg("progress"),
        "The estimates behind introspect.estimate_ranges: one for each vector, strength, rotation and "
        "question.");
  bind_readouts(m);
}

}  // namespace introspect::python
