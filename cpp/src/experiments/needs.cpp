#include "experiments/needs.h"

#include <algorithm>
#include <iterator>

namespace introspect::experiments {
namespace {

bool is_activation(const Need& need) {
  return need.read.what == graph::Read::What::activation;
}

bool are_equal_but_for_layers(const Need& a, const Need& b) {
  return a.is_unsteered == b.is_unsteered && a.at_injected == b.at_injected && a.after == b.after &&
         a.read.what == b.read.what && a.read.positions == b.read.positions && a.read.point == b.read.point &&
         a.read.heads == b.read.heads;
}

/// Empty lists are all layers.
std::vector<int64_t> united(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  if (a.empty() || b.empty()) return {};
  std::vector<int64_t> out;
  std::set_union(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(out));
  return out;
}

}  // namespace

MergedNeeds::Source MergedNeeds::add(const Need& given) {
  auto need = given;
  auto& layers = need.read.layers;
  if (is_activation(need)) {  // where layers are merged their order is the blocks'
    std::sort(layers.begin(), layers.end());
    layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  }
  auto& all = need.is_unsteered ? unsteered_ : steered_;
  const auto found = std::find_if(all.begin(), all.end(), [&](const Need& other) {
    return are_equal_but_for_layers(need, other) && (is_activation(need) || layers == other.read.layers);
  });
  const auto place = static_cast<size_t>(found - all.begin());
  if (found == all.end())
    all.push_back(need);
  else
    found->read.layers = united(found->read.layers, layers);
  return {need.is_unsteered, place, {}, given.read.layers};
}

void MergedNeeds::finish(Source& source) const {
  const auto& need = (source.is_unsteered ? unsteered_ : steered_)[source.place];
  const auto& read = need.read.layers;
  if (!is_activation(need) || source.layers == read) return;
  for (const auto layer : source.layers)
    source.rows.push_back(read.empty() ? layer : std::find(read.begin(), read.end(), layer) - read.begin());
}

torch::Tensor MergedNeeds::take(const Source& source, const std::vector<torch::Tensor>& steered,
                                const std::vector<torch::Tensor>& unsteered) {
  const auto& from = source.is_unsteered ? unsteered : steered;
  if (source.place >= from.size()) return {};
  const auto& values = from[source.place];
  if (source.rows.empty() || !values.defined()) return values;
  return values.index_select(1, torch::tensor(source.rows, torch::kLong));
}

}  // namespace introspect::experiments
