// Activation patching: which layers and positions of one prompt carry the answer into another, all cells in one graph.
//
//     example_patching MODEL.gguf

#include <cstdio>
#include <iostream>
#include <string>

#include <torch/types.h>

#include "introspect/analysis/patching.h"
#include "introspect/models/model.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_patching MODEL\n";
    return 2;
  }
  try {
    const auto model = models::Model::load(argv[1]);
    const auto ids = [&](const std::string& text) { return model->tokenizer().encode(text, true); };
    const auto token = [&](const std::string& text) { return model->tokenizer().encode(text, false).at(0); };

    analysis::PatchPair pair;
    pair.from.tokens = ids("When Mary and John went to the store, John gave a drink to");
    pair.to.tokens = ids("When Mary and John went to the store, Mary gave a drink to");
    pair.metric.terms = {
        {.right = {token(" Mary")}, .wrong = {token(" John")}}};  // a logit difference at the end

    const auto grid = analysis::patch_grid(model, {pair}, {.axes = {.point = hooks::Point::kResidPre}});
    std::printf("clean %+.2f, corrupted %+.2f; %lld of %lld tokens x layers were run\n",
                grid.from[0].item<double>(), grid.to[0].item<double>(),
                static_cast<long long>(grid.token_layers_to_run),
                static_cast<long long>(grid.token_layers_asked));

    const auto share_LT = ((grid.values - grid.to) / (grid.from - grid.to))[0];  // 0 corrupted, 1 clean
    for (int64_t position = 0; position < share_LT.size(1); ++position) {
      std::printf("%10s", model->tokenizer().decode({pair.to.tokens[static_cast<size_t>(position)]}).c_str());
      for (int64_t layer = 0; layer < share_LT.size(0); layer += 3)
        std::printf("%7.2f", share_LT[layer][position].item<double>());
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::cerr << "example_patching: " << error.what() << '\n';
    return 1;
  }
}
