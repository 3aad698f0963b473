#include <cmath>
#include <iostream>

#include "introspect/introspect.h"

// One include for the whole library: a value of what several modules make.
int main() {
  using namespace introspect;
  const engine::TokenTrie trie({{1, 2}, {1, 3}});
  const auto entropy = ops::entropy(torch::zeros({2})).item<double>();
  const hooks::Intervention nothing{.values = {{0, torch::ones({2})}}, .strength = 0.0};
  std::cout << "introspect " << INTROSPECT_VERSION << ": " << trie.size() << " nodes, " << entropy
            << " nats\n";
  return trie.size() == 3 && std::abs(entropy - std::log(2.0)) < 1e-12 && hooks::is_identity(nothing) ? 0 : 1;
}
