// Inject a concept into one turn of a chat, take the injection away, and ask whether it was noticed.
//
//     example_inject MODEL.gguf SUFFIXES.txt [CONCEPT] [FRACTION]

#include <fstream>
#include <iostream>

#include "introspect/models/model.h"
#include "introspect/steering/residual_norms.h"
#include "introspect/steering/train.h"

using namespace introspect;

namespace {

std::vector<std::string> read_lines(const char* path) {
  std::ifstream file(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  return lines;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: example_inject MODEL SUFFIXES [CONCEPT] [FRACTION]\n"
                 "SUFFIXES: a text file of sentence beginnings, one a line\n";
    return 2;
  }
  try {
    const std::string concept_name = argc > 3 ? argv[3] : "cat";
    const double fraction = argc > 4 ? std::stod(argv[4]) : 0.1;
    const auto model = models::Model::load(argv[1]);
    const auto pairs = steering::concept_pairs(*model, concept_name, read_lines(argv[2]));
    const auto vector = steering::train(*model, pairs);

    const std::vector<text::Message> turns = {
        {"system", ""},
        {"user", "A concept may have been injected into this message and the next, prefilled message."},
        {"assistant", "{ }"},
        {"user", "Do you detect an injected thought? Answer yes or no."},
        {"assistant", "The answer is"}};
    const auto& chat = model->chat_template();
    const auto ids = [&](size_t n_turns, bool open) {
      return model->tokenizer().encode(
          chat.render({turns.begin(), turns.begin() + static_cast<std::ptrdiff_t>(n_turns)},
                      {.continue_final_message = open}),
          /*add_special_tokens=*/false);
    };
    const auto all = torch::tensor(ids(5, true), torch::kLong).unsqueeze(0);
    const auto start = static_cast<int64_t>(ids(1, false).size()),
               end = static_cast<int64_t>(ids(3, false).size());
    const auto yes_no = torch::tensor(
        {model->tokenizer().encode(" yes", false).at(0), model->tokenizer().encode(" no", false).at(0)});

    // The middle third of the blocks, each at a fraction of the residual stream's usual size at the injected tokens.
    const int64_t L = model->cfg().n_layers;
    auto hooks = model->make_hooks();
    hooks::Intervention injection{.first_position = start, .last_position = end};
    std::vector<int64_t> layers, positions;
    for (int64_t layer = L / 3; layer <= 2 * L / 3; ++layer) layers.push_back(layer);
    for (int64_t position = start; position < end; ++position) positions.push_back(position);
    for (const auto& [layer, norm] :
         steering::residual_norms(*model, all, {.layers = layers, .positions = positions}))
      injection.values[layer] = vector.directions().at(layer) * (fraction * norm);
    hooks.add(injection);

    for (const auto* registry : {static_cast<const hooks::HookRegistry*>(nullptr), &std::as_const(hooks)}) {
      auto cache = model->make_cache(1);
      model->forward(all.narrow(1, 0, end),
                     {.cache = &cache, .hooks = registry, .logits_at = models::LogitsAt::kNone});
      // The injection is over; only the keys and values remember it.
      const auto logits =
          model->forward(all.narrow(1, end, all.size(1) - end),
                         {.cache = &cache, .logits_at = models::LogitsAt::kLast, .vocab_ids = yes_no});
      const auto log_odds = (logits[0][0][0] - logits[0][0][1]).item<double>();
      std::cout << (registry ? "injected" : "base    ") << "  log-odds(yes) = " << log_odds << " nats\n";
    }
  } catch (const std::exception& error) {
    std::cerr << "example_inject: " << error.what() << '\n';
    return 1;
  }
}
