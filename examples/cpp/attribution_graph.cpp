// Which features made the model say it: transcoders trained on the spot, the graph of a prompt, and its strongest paths.
//
//     example_attribution_graph MODEL.gguf [PROMPT]
//
// The transcoders see the beginnings of sentences that come with the library, a few thousand tokens, so that most of the
// graph is error. Layers without a transcoder count as error as a whole.

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <torch/types.h>

#include "introspect/activations/activation_source.h"
#include "introspect/activations/token_stream.h"
#include "introspect/circuits/attribute.h"
#include "introspect/models/model.h"
#include "introspect/sae/trainer.h"
#include "introspect/steering/train.h"

using namespace introspect;

namespace {

/// What the model's MLPs read and write over texts: all rows at every site.
activations::SiteRows read_rows(const std::shared_ptr<const models::Model>& model,
                                const std::vector<activations::StreamSite>& sites) {
  const auto documents = activations::Documents::of_texts(steering::load_suffixes(), model);
  const auto packing = activations::pack_options(*model, /*context=*/64);
  activations::ModelActivationsOptions options{.max_norm_multiple = 10};  // attention sinks are no text
  if (packing.bos) options.exclude_tokens = {*packing.bos};
  const auto source = activations::model_activations({model}, {documents, packing}, sites, options);
  std::vector<std::vector<torch::Tensor>> parts(sites.size());
  for (auto columns = source->next(); !columns.empty(); columns = source->next()) {
    const auto rows = source->rows(columns);
    for (size_t site = 0; site < sites.size(); ++site) parts[site].push_back(rows[site]);
  }
  activations::SiteRows all;
  for (const auto& part : parts) all.push_back(at::cat(part));
  return all;
}

/// A transcoder of rows x [N, D] to y [N, D], which sees them several times.
sae::Dictionary train_transcoder(const sae::DictionaryOrigin& origin, const torch::Tensor& x_ND,
                                 const torch::Tensor& y_ND) {
  constexpr int64_t kSteps = 60, kBatch = 512;
  sae::TrainerOptions options{.d_sae = 1024, .k = 32, .rank_by_decoder_norm = false};
  options.aux = sae::AuxLoss::normalised;
  options.aux_coefficient = 1.0 / 32;
  options.input_norm = sae::InputNorm::scale;
  options.subtract_b_dec = false;
  options.transcodes = true;
  options.b_dec_start = sae::BiasStart::mean;
  options.decoder_norm = 1;
  options.unit_decoder = true;
  options.lr = 8e-4;
  options.warm_up_steps = 5;
  options.dead_window = 20;
  sae::Trainer trainer(options, origin, x_ND.size(1), y_ND.size(1));
  sae::TrainerMetrics metrics;
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto batch = at::randint(x_ND.size(0), {kBatch}, at::kLong);
    metrics = trainer.step(x_ND.index_select(0, batch), y_ND.index_select(0, batch));
  }
  std::printf("%s: explained variance of the last batch %.2f\n", origin.outputs[0].hook_name.c_str(),
              metrics.explained_variance);
  return trainer.dictionary();
}

std::string name_of(const circuits::AttributionGraph& graph, const circuits::GraphNode& node) {
  const auto at = node.position < 0 ? std::string() : "'" + graph.token_texts[size_t(node.position)] + "'";
  if (node.kind == circuits::GraphNodeKind::token) return at;
  if (node.kind == circuits::GraphNodeKind::logit) return "next token '" + node.name + "'";
  const auto kind = node.kind == circuits::GraphNodeKind::feature ? "feature " + std::to_string(node.feature)
                                                                  : circuits::to_string(node.kind);
  return kind + " of block " + std::to_string(node.layer) + " at " + at;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: example_attribution_graph MODEL [PROMPT]\n";
    return 2;
  }
  try {
    at::manual_seed(0);
    const auto model = models::Model::load(argv[1]);
    const std::string prompt = argc > 2 ? argv[2] : "The opposite of small is";
    const int64_t L = model->cfg().n_layers, D = model->cfg().d_model;

    const std::vector<int64_t> layers = {L / 4, L / 2, 3 * L / 4};
    std::vector<activations::StreamSite> sites;
    for (const int64_t layer : layers)
      for (const char* point : {"hook_mlp_in", "hook_mlp_out"})
        sites.push_back({"blocks." + std::to_string(layer) + "." + point});
    const auto rows = read_rows(model, sites);
    std::printf("%lld tokens\n", static_cast<long long>(rows[0].size(0)));

    circuits::Transcoders transcoders{.name = "trained on the spot"};
    for (size_t i = 0; i < layers.size(); ++i) {
      const sae::DictionaryOrigin origin{.inputs = {{sites[2 * i].hook_name, D}},
                                         .outputs = {{sites[2 * i + 1].hook_name, D}},
                                         .model_name = model->cfg().model_name};
      transcoders.layers.emplace(layers[i], train_transcoder(origin, rows[2 * i], rows[2 * i + 1]));
    }

    const auto tokens = model->tokenizer().encode(prompt, /*add_special_tokens=*/true);
    circuits::AttributeOptions options;
    options.max_features = 1000;
    const auto graph = circuits::attribute(*model, torch::tensor(tokens), transcoders, options);
    const auto scores = graph.scores();
    circuits::PruneOptions prune;
    prune.node_threshold = 0.9;
    prune.edge_threshold = 0.98;
    const auto small = graph.pruned(prune);
    std::printf("%lld nodes, %lld after pruning; replacement %.2f, completeness %.2f\n",
                static_cast<long long>(graph.n_nodes()), static_cast<long long>(small.n_nodes()),
                scores.replacement, scores.completeness);

    // From every token to the likeliest next one.
    int64_t target = -1;
    for (int64_t i = 0; i < small.n_nodes(); ++i)
      if (const auto& node = small.nodes[size_t(i)]; node.kind == circuits::GraphNodeKind::logit)
        if (target < 0 || node.value > small.nodes[size_t(target)].value) target = i;
    std::vector<circuits::GraphPath> paths;
    for (int64_t i = 0; i < small.n_nodes(); ++i)
      if (small.nodes[size_t(i)].kind == circuits::GraphNodeKind::token)
        for (auto& path : small.paths(i, target, 5)) paths.push_back(std::move(path));
    std::sort(paths.begin(), paths.end(), [](const auto& a, const auto& b) { return a.weight > b.weight; });
    paths.resize(std::min<size_t>(paths.size(), 8));
    for (const auto& path : paths) {
      std::printf("%.4f ", path.weight);
      for (size_t i = 0; i < path.nodes.size(); ++i)
        std::printf("%s %s", i ? " ->" : "", name_of(small, small.nodes[size_t(path.nodes[i])]).c_str());
      std::printf("\n");
    }
  } catch (const std::exception& error) {
    std::cerr << "example_attribution_graph: " << error.what() << '\n';
    return 1;
  }
}
