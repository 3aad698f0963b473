// Train a control vector from pairs of texts, say how well each layer tells them apart, and apply it while generating.
//
//     example_vector MODEL.gguf SUFFIXES.txt [CONCEPT] [STRENGTH] [OUTPUT.gguf]

#include <fstream>
#include <iostream>

#include "introspect/models/generate.h"
#include "introspect/models/model.h"
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
    std::cerr << "usage: example_vector MODEL SUFFIXES [CONCEPT] [STRENGTH] [OUTPUT.gguf]\n"
                 "SUFFIXES: a text file of sentence beginnings, one a line\n";
    return 2;
  }
  try {
    const std::string concept_name = argc > 3 ? argv[3] : "cat";
    const double strength = argc > 4 ? std::stod(argv[4]) : 7.0;
    const auto model = models::Model::load(argv[1], {.dtype = torch::kBFloat16});
    const auto pairs = steering::concept_pairs(*model, concept_name, read_lines(argv[2]));
    const auto vector = steering::train(*model, pairs);

    std::cout << "layer  sign agreement  AUC on held-out pairs\n";
    for (const auto& [layer, judged] : vector.origin().diagnostics)
      if (layer % 5 == 0)
        std::cout << layer << "  " << judged.sign_agreement << "  " << judged.auc.value_or(0.0) << '\n';

    const auto text = model->chat_template().render({{"user", "What are you thinking about right now?"}},
                                                    {.add_generation_prompt = true});
    const auto prompt = model->tokenizer().encode(text, /*add_special_tokens=*/false);
    const int64_t L = model->cfg().n_layers;
    for (const double times : {0.0, 1.0, -1.0}) {
      auto hooks = model->make_hooks();
      hooks.add(steering::as_intervention(vector * (times * strength), L, L / 3, 2 * L / 3));
      models::GenerateOptions options;
      options.max_new_tokens = 25;
      options.hooks = &hooks;  // in effect during the prompt and every step
      const auto ids = models::generate(*model, {prompt}, options).front();
      std::cout << times * strength << ": " << model->tokenizer().decode(ids, /*skip_special_tokens=*/true)
                << '\n';
    }

    if (argc > 5) {
      vector.export_gguf(argv[5]);
      std::cout << "wrote " << argv[5] << ", which repeng and llama.cpp read\n";
    }
  } catch (const std::exception& error) {
    std::cerr << "example_vector: " << error.what() << '\n';
    return 1;
  }
}
