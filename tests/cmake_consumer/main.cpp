#include <torch/torch.h>

#include <iostream>
#include <string>

#include "introspect/core/check.h"
#include "introspect/core/error.h"
#include "introspect/experiments/protocol.h"
#include "introspect/version.h"

// Uses LibTorch and introspect together, finds the data that is installed with the library, and catches an exception
// thrown as the library throws it.
int main() {
  std::cout << "introspect " << INTROSPECT_VERSION << ", built with torch " << INTROSPECT_BUILT_WITH_TORCH
            << ", running with torch " << TORCH_VERSION << '\n';
  std::cout << "protocol: " << introspect::experiments::Protocol::load("no_info").name << '\n';
  const auto x = torch::ones({2, 3});
  try {
    introspect::check<introspect::ShapeError>(x.dim() == 3, "consumer: x must have 3 dimensions, got ",
                                              x.sizes());
  } catch (const introspect::Error& error) {
    std::cout << "caught: " << error.what() << '\n';
    return error.what() == std::string("consumer: x must have 3 dimensions, got [2, 3]") ? 0 : 1;
  }
  return 1;
}
