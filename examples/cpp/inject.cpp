// Inject a concept into one turn of a chat, take the injection away, and ask whether it was noticed.
//
//     example_inject MODEL [CONCEPT] [STRENGTH]
//
// MODEL: a folder, a .gguf file or a short name. STRENGTH: a dose that is solved for ("kl=0.5" nats, which is the default,
// or "coherent"), or a fraction of the residual stream's usual size.

#include <cctype>
#include <iostream>

#include "introspect/experiments/coherence.h"
#include "introspect/experiments/run.h"
#include "introspect/models/model.h"
#include "introspect/steering/train.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_inject MODEL [CONCEPT] [STRENGTH]\n";
    return 2;
  }
  try {
    const std::string concept_name = argc > 2 ? argv[2] : "cat";
    const std::string strength = argc > 3 ? argv[3] : "kl=0.5";
    const auto model = models::Model::load(argv[1]);
    auto suffixes = steering::load_suffixes();
    suffixes.resize(100);
    const auto vector = steering::train(*model, steering::concept_pairs(*model, concept_name, suffixes));

    experiments::ExperimentOptions options;
    options.strength_unit = experiments::StrengthUnit::residual;
    options.questions = std::vector<std::string>{};  // no controls: the protocol's own question alone
    options.nulls = 3;
    const auto protocol = experiments::Protocol::load("no_info");
    const experiments::NamedVectors vectors{{concept_name, vector}};
    if (std::isdigit(static_cast<unsigned char>(strength.front())))
      options.strengths = {std::stod(strength)};
    else
      options.strengths =
          experiments::strengths_of_doses(model, protocol, vectors, {strength}).front().strengths;
    const auto result = experiments::run_experiment(model, protocol, vectors, options);
    std::cout << "strength: " << options.strengths->front() << " of the residual norm\n";
    std::cout << "log-odds(yes) without an injection: " << result.rows.front().base.log_odds << " nats\n";
    for (const auto& row : result.rows)
      std::cout << (row.kind == "random" ? "random rotation" : row.concept_name)
                << " injected: " << row.injected.log_odds << '\n';
  } catch (const std::exception& error) {
    std::cerr << "example_inject: " << error.what() << '\n';
    return 1;
  }
}
