// Train a control vector from pairs of texts, say how well each layer tells them apart, and apply it while generating.
//
//     example_vector MODEL [CONCEPT] [STRENGTH] [OUTPUT.gguf]

#include <iostream>

#include "introspect/models/generate.h"
#include "introspect/models/model.h"
#include "introspect/steering/train.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_vector MODEL [CONCEPT] [STRENGTH] [OUTPUT.gguf]\n";
    return 2;
  }
  try {
    const std::string concept_name = argc > 2 ? argv[2] : "cat";
    const double strength = argc > 3 ? std::stod(argv[3]) : 7.0;
    const auto model = models::Model::load(argv[1], {.dtype = torch::kBFloat16});
    auto suffixes = steering::load_suffixes();
    suffixes.resize(100);
    const auto vector = steering::train(*model, steering::concept_pairs(*model, concept_name, suffixes));

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

    if (argc > 4) {
      vector.export_gguf(argv[4]);
      std::cout << "wrote " << argv[4] << ", which repeng and llama.cpp read\n";
    }
  } catch (const std::exception& error) {
    std::cerr << "example_vector: " << error.what() << '\n';
    return 1;
  }
}
