// An experiment graph: one conversation unsteered and under several injections, planned as one run, with a logit lens.
//
//     example_graph MODEL.gguf [CONCEPT]

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/graph/graph.h"
#include "introspect/models/model.h"
#include "introspect/steering/train.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_graph MODEL [CONCEPT]\n";
    return 2;
  }
  try {
    const auto model = models::Model::load(argv[1]);
    const std::string concept_name = argc > 2 ? argv[2] : "cat";
    const auto pairs =
        steering::concept_pairs(*model, concept_name, {"I", "The", "When", "It is", "You", "A"});
    const auto vector = steering::train(*model, pairs);
    const int64_t L = model->cfg().n_layers;

    const std::vector<text::Message> turns = {
        {"system", ""},
        {"user", "A concept may have been injected into this message and the next, prefilled message."},
        {"assistant", "{ }"},
        {"user", "Do you detect an injected thought? Answer yes or no."},
        {"assistant", "The answer is"}};
    const auto ids = [&](size_t first, size_t last) {  // of messages [first, last)
      const auto encode = [&](size_t n) -> std::vector<int64_t> {
        if (n == 0) return {};
        return model->tokenizer().encode(
            model->chat_template().render({turns.begin(), turns.begin() + static_cast<std::ptrdiff_t>(n)},
                                          {.continue_final_message = n == turns.size()}),
            /*add_special_tokens=*/false);
      };
      const auto before = encode(first), whole = encode(last);
      return std::vector<int64_t>(whole.begin() + static_cast<std::ptrdiff_t>(before.size()), whole.end());
    };

    // Three nodes for each run: what stands before, the injected messages, and the question after them.
    graph::Graph graph;
    const auto before = graph.segment(model, ids(0, 1));
    const auto add_run = [&](int64_t first_layer, int64_t last_layer, double strength) {
      hooks::Intervention added{.strength = strength};
      for (int64_t layer = first_layer; layer <= last_layer; ++layer)
        added.values[layer] = vector.directions().at(layer);
      const auto injected = graph.segment(model, ids(1, 3), before, {added});
      return graph.read(graph.segment(model, ids(3, 5), injected));  // every layer, at the last position
    };
    const std::vector<std::pair<std::string, graph::ReadId>> runs = {
        {"base", add_run(L / 3, 2 * L / 3, 0.0)},  // strength 0 is no intervention
        {"middle third", add_run(L / 3, 2 * L / 3, 8.0)},
        {"longer", add_run(L / 3, L - 2, 8.0)},
        {"one block", add_run(L / 3, L / 3, 8.0)}};

    const auto plan = graph.plan();
    std::cout << plan.token_layers_to_run << " tokens x layers instead of " << plan.token_layers_asked
              << '\n';
    const auto readings = graph.run();

    const auto yes_no = torch::tensor(
        {model->tokenizer().encode(" yes", false).at(0), model->tokenizer().encode(" no", false).at(0)});
    std::cout << "log-odds of yes, in nats, as a lens reads them\nlayer";
    for (const auto& [name, read] : runs) std::printf("%15s", name.c_str());
    for (int64_t layer = 1; layer < L; layer += 4) {
      std::printf("\n%5lld", static_cast<long long>(layer));
      for (const auto& [name, read] : runs) {
        const auto logits = model->readout(readings[static_cast<size_t>(read)].values[0][layer], yes_no);
        std::printf("%15.3f", (logits[0] - logits[1]).item<double>());
      }
    }
    std::printf("\n");
  } catch (const std::exception& error) {
    std::cerr << "example_graph: " << error.what() << '\n';
    return 1;
  }
}
