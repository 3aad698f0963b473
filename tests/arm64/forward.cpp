// The logits of every token of a text, a number a line: what two machines' passes are compared by.
//
//     forward MODEL DTYPE HELD ID...      DTYPE: float32 or bfloat16; HELD: dense or stored (GGUF's blocks)

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

#include "introspect/models/model.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc < 5) {
    std::cerr << "usage: forward MODEL DTYPE HELD ID...\n";
    return 2;
  }
  try {
    models::LoadOptions options;
    options.dtype = std::string(argv[2]) == "bfloat16" ? torch::kBFloat16 : torch::kFloat32;
    options.weights =
        std::string(argv[3]) == "stored" ? models::WeightsHeld::kAsStored : models::WeightsHeld::kDense;
    const auto model = models::Model::load(argv[1], options);
    std::vector<int64_t> ids;
    for (int i = 4; i < argc; ++i) ids.push_back(std::stoll(argv[i]));
    const at::NoGradGuard no_grad;
    const auto logits = model->forward(torch::tensor(ids, torch::kLong).unsqueeze(0)).contiguous();
    const auto* const numbers = logits.const_data_ptr<float>();
    for (int64_t i = 0; i < logits.numel(); ++i) std::printf("%.9g\n", static_cast<double>(numbers[i]));
  } catch (const std::exception& error) {
    std::cerr << "forward: " << error.what() << '\n';
    return 1;
  }
}
