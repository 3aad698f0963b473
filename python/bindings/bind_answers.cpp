#include "bindings.h"

#include "introspect/experiments/answers.h"

namespace introspect::python {

using namespace experiments;

void bind_answers(py::module_& m) {
  m.def(
      "answer_shares",
      [](const graph::ModelPtr& model,
         const std::vector<std::pair<std::vector<int64_t>, std::vector<hooks::Intervention>>>& prompts,
         const AnswerTexts& answers, int64_t memory_budget, py::object progress) {
        std::vector<AnswerPrompt> asked;
        for (const auto& [ids, interventions] : prompts) asked.push_back({ids, interventions});
        graph::RunOptions options;
        options.memory_budget = memory_budget;
        options.progress = as_progress(std::move(progress));
        const py::gil_scoped_release release;
        return answer_shares(model, asked, Answers(answers, model->tokenizer()), options);
      },
      py::arg("model"), py::arg("prompts"), py::arg("answers"), py::kw_only(),
      py::arg("memory_budget") = graph::RunOptions{}.memory_budget, py::arg("progress") = py::none(), R"doc(
The exact probability of every label after each prompt, see introspect.studies.answer_shares.

Args:
    prompts: (token ids, interventions while they run) each.
    answers: (label, texts) each.

Returns:
    [n_prompts, n_labels], float64.
)doc");
}

}  // namespace introspect::python
