#include "activation_streams.h"
#include "bindings.h"

#include "introspect/sae/train.h"

namespace introspect::python {

using activations::ActivationStream;
using OptionalId = std::optional<int64_t>;

void bind_dictionary_runs(py::module_& m) {
  py::class_<sae::TrainingRecord>(m, "TrainingRecord", "What is known of all dictionaries after a step.")
      .def_readonly("step", &sae::TrainingRecord::step, "Steps done.")
      .def_readonly("rows", &sae::TrainingRecord::rows)
      .def_readonly("trained", &sae::TrainingRecord::trained, "Of the step's own batch, a dictionary each.")
      .def_readonly("held_out", &sae::TrainingRecord::held_out,
                    "{name: figure} on the held-out rows, a dictionary each; empty between evaluations.");

  const sae::TrainOptions d;
  m.def(
      "train_dictionaries",
      [](ActivationStream& stream,
         const std::vector<std::tuple<std::string, SiteNames, SiteNames>>& dictionaries,
         const std::string& model_name, const std::string& model_hash, OptionalId context_size,
         std::optional<bool> prepend_bos, const std::string& notes, int64_t steps, int64_t held_out_rows,
         int64_t evaluate_every, int64_t record_every, const std::filesystem::path& folder,
         int64_t checkpoint_every, bool resume, const py::object& on_record, const py::object& evaluate,
         py::object progress) {
        sae::TrainOptions options{steps,
                                  held_out_rows,
                                  evaluate_every,
                                  record_every,
                                  folder,
                                  checkpoint_every,
                                  resume,
                                  {},
                                  {},
                                  as_shown_progress(std::move(progress))};
        if (!on_record.is_none())
          options.on_record = [function = held(on_record)](const sae::TrainingRecord& record) {
            const py::gil_scoped_acquire acquire;
            (*function)(record);
          };
        if (!evaluate.is_none())
          options.evaluate = [function = held(evaluate)](size_t which, const sae::Dictionary& dictionary) {
            const py::gil_scoped_acquire acquire;
            return (*function)(which, dictionary).cast<sae::HeldOutFigures>();
          };
        sae::DictionaryOrigin origin;
        origin.model_name = model_name;
        origin.model_hash = model_hash;
        origin.context_size = context_size;
        origin.prepend_bos = prepend_bos;
        origin.notes = notes;
        const py::gil_scoped_release release;
        std::vector<sae::Trainer> trainers;
        for (const auto& [json, inputs, outputs] : dictionaries)
          trainers.push_back(sae::make_trainer(stream, sae::TrainerOptions::from_json(json), sites_of(inputs),
                                               sites_of(outputs), origin));
        auto run = sae::train_dictionaries(stream, std::move(trainers), options);
        return std::make_pair(run.dictionaries(), std::move(run.records));
      },
      py::arg("stream"), py::arg("dictionaries"), py::kw_only(), py::arg("model_name") = "",
      py::arg("model_hash") = "", py::arg("context_size") = py::none(), py::arg("prepend_bos") = py::none(),
      py::arg("notes") = "{}", py::arg("steps") = d.steps, py::arg("held_out_rows") = d.held_out_rows,
      py::arg("evaluate_every") = d.evaluate_every, py::arg("record_every") = d.record_every,
      py::arg("folder") = "", py::arg("checkpoint_every") = d.checkpoint_every, py::arg("resume") = d.resume,
      py::arg("on_record") = py::none(), py::arg("evaluate") = py::none(), py::arg("progress") = py::none(),
      R"doc(
Trains several dictionaries on one stream of activations, with checkpoints and figures on held-out rows.

Args:
    stream: an ActivationStream.
    dictionaries: (TrainerOptions as JSON, sites read, sites written) each; no sites written: those read.
    model_name, model_hash, context_size, prepend_bos, notes: where they come from, for their files.
    steps: of all; a resumed run counts those before.
    held_out_rows: taken from the stream's beginning; 0: none, and no evaluation.
    evaluate_every, record_every, checkpoint_every: steps.
    folder: of checkpoints; "": none are kept.
    resume: goes on from the folder's checkpoint.
    on_record: called with each TrainingRecord.
    evaluate: called with (number, Dictionary); returns more figures, {name: number}.
    progress: called with (what, done, total).

Returns:
    (list of Dictionary, list of TrainingRecord).

Raises:
    Error: a loss is not finite or all features are dead; it names the last good checkpoint.
    ConfigError, ValueError, IoError: before the first step, for what does not fit.
)doc");
}

}  // namespace introspect::python
