#include "introspect/training/lora_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include <torch/autograd.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
#include "introspect/io/safetensors.h"
#include "introspect/models/whole_weights.h"

#include "core/json.h"
#include "core/on_device.h"
#include "engine/memory.h"
#include "models/adapter_places.h"
#include "models/numerics.h"
#include "ops/adam.h"
#include "training/example_tree.h"

namespace introspect::training {

namespace {

constexpr auto kFormat = "introspect.lora.1";
constexpr int64_t kNodesPerPass = 1024;  // of passes without a graph
constexpr int64_t kGraphBytes = 2;       // a graph keeps about twice what lives in a block at once

void check_options(const LoraOptions& o) {
  const auto positive = [](const char* what, auto value) {
    check<std::invalid_argument>(std::isfinite(static_cast<double>(value)) && value > 0, "train_lora: ", what,
                                 " must be above 0, got ", value);
  };
  positive("steps", o.steps);
  positive("batch_size", o.batch_size);
  positive("lr", o.lr);
  positive("memory_budget", o.memory_budget);
  check<std::invalid_argument>(std::isfinite(o.lr_end) && o.lr_end >= 0,
                               "train_lora: lr_end must be 0 or more, got ", o.lr_end);
  check<std::invalid_argument>(std::isfinite(o.clip) && o.clip >= 0,
                               "train_lora: clip must be 0 or more, got ", o.clip);
}

nlohmann::json options_json(const LoraOptions& o) {
  return {{"steps", o.steps}, {"batch_size", o.batch_size},
          {"lr", o.lr},       {"lr_end", o.lr_end},
          {"clip", o.clip},   {"seed", o.seed}};
}

/// The examples in the order of one round, the same on every machine: units in random order.
std::vector<int64_t> order_of_round(const std::vector<std::vector<int64_t>>& units, uint64_t seed,
                                    int64_t round) {
  std::seed_seq seeds{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                      static_cast<uint32_t>(round)};
  std::mt19937_64 random(seeds);
  std::vector<size_t> order(units.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  std::vector<int64_t> out;
  for (const size_t unit : order) out.insert(out.end(), units[unit].begin(), units[unit].end());
  return out;
}

/// A matrix that is trained, and Adam's moments.
struct Matrix {
  std::string name;                                   // "model.layers.3.self_attn.q_proj.lora_A"
  models::RowOrder order = models::RowOrder::kPlain;  // of B's rows
  torch::Tensor values, first, second;
};

using Gradients = std::vector<torch::Tensor>;

}  // namespace

struct LoraTrainer::State {
  State(std::shared_ptr<const models::Model> model, std::shared_ptr<const models::Adapter> from,
        const std::vector<LoraExample>& examples, LoraOptions given)
      : base(std::move(model)), start(std::move(from)), options(given), tree(*base, examples, "train_lora") {
    check_options(options);
    models::whole_weights(*base, "train_lora");  // blocks get trained parts, and gradients
    auto places = models::on_devices_of(*base, models::places_of(*start, *base));
    first_layer = base->cfg().n_layers;
    for (size_t layer = 0; layer < places.size(); ++layer)
      for (auto& place : places[layer]) {
        first_layer = std::min(first_layer, static_cast<int64_t>(layer));
        for (auto* matrix : {&place.addition.A, &place.addition.B}) {
          const bool is_B = matrix == &place.addition.B;
          *matrix = matrix->detach().clone(at::MemoryFormat::Contiguous).set_requires_grad(true);
          matrices.push_back({place.module + (is_B ? ".lora_B" : ".lora_A"),
                              is_B ? place.order : models::RowOrder::kPlain, *matrix, at::zeros_like(*matrix),
                              at::zeros_like(*matrix)});
        }
      }
    adapted = models::with_additions(*base, places, base->hash());
    const engine::TokenBytes bytes(base->cfg(), base->dtype());
    const int64_t layers = base->cfg().n_layers - first_layer;
    most_nodes = std::max<int64_t>(1, options.memory_budget / (kGraphBytes * bytes.in_block * layers));
    keeps_residuals = first_layer > 0 && tree.n_nodes() * bytes.residual <= options.memory_budget;
  }

  std::shared_ptr<const models::Model> base, adapted;  // `adapted` holds the live matrices
  std::shared_ptr<const models::Adapter> start;
  LoraOptions options;
  ExampleTree tree;
  std::vector<Matrix> matrices;
  int64_t first_layer = 0, most_nodes = 0;
  bool keeps_residuals = false;
  torch::Tensor residuals;  // before first_layer, of all nodes [N, D]; undefined: not there yet
  int64_t steps = 0;

  torch::Tensor lower(const ExampleTree::Part& part) const;
  void run_lower(const Progress& progress);
  double lr() const;
  std::vector<int64_t> batch() const;
  std::pair<double, Gradients> gradients(const std::vector<int64_t>& examples) const;
};

/// The residual of a part's nodes before the lowest block that is trained: [N, D].
torch::Tensor LoraTrainer::State::lower(const ExampleTree::Part& part) const {
  const at::NoGradGuard no_grad;
  const auto hooks = tree.additions(*base, part, 0, first_layer);
  models::ForwardOptions forward;
  forward.parents = part.parents;
  forward.hooks = &hooks;
  forward.stop_at_layer = first_layer;
  return base->forward(part.tokens, forward)[0];
}

void LoraTrainer::State::run_lower(const Progress& progress) {
  if (!keeps_residuals || residuals.defined()) return;
  std::vector<int64_t> all(static_cast<size_t>(tree.n_examples()));
  std::iota(all.begin(), all.end(), int64_t{0});
  torch::Tensor out;
  int64_t done = 0;
  for (const auto& group : tree.groups(all, kNodesPerPass)) {
    check_interrupt();
    const auto part = tree.part(group);
    const auto values = lower(part);
    if (!out.defined()) out = at::empty({tree.n_nodes(), values.size(1)}, values.options());
    out.index_copy_(0, on_device(part.nodes, out.device()), values);
    report(progress, "blocks below", done += static_cast<int64_t>(group.size()), tree.n_examples());
  }
  residuals = out;
}

double LoraTrainer::State::lr() const {
  const auto at = static_cast<double>(steps) / static_cast<double>(options.steps);
  return options.lr + (options.lr_end - options.lr) * std::min(1.0, at);
}

std::vector<int64_t> LoraTrainer::State::batch() const {
  const int64_t n = tree.n_examples();
  std::vector<int64_t> out, order;
  for (int64_t i = steps * options.batch_size; i < (steps + 1) * options.batch_size; ++i) {
    if (order.empty() || i % n == 0) order = order_of_round(tree.units(), options.seed, i / n);
    out.push_back(order[static_cast<size_t>(i % n)]);
  }
  return out;
}

std::pair<double, Gradients> LoraTrainer::State::gradients(const std::vector<int64_t>& examples) const {
  const at::AutoGradMode with_gradients(true);
  std::vector<torch::Tensor> leaves;
  for (const auto& matrix : matrices) leaves.push_back(matrix.values);
  int64_t n_targets = 0;
  for (const int64_t i : examples) {
    check<std::out_of_range>(i >= 0 && i < tree.n_examples(), "train_lora: examples are 0 to ",
                             tree.n_examples() - 1, ", got ", i);
    n_targets += tree.n_targets(i);
  }
  double loss = 0;
  Gradients sum;
  for (const auto& group : tree.groups(examples, most_nodes)) {
    check_interrupt();
    const auto part = tree.part(group);
    const auto hooks = tree.additions(*base, part, first_layer, base->cfg().n_layers);
    models::ForwardOptions forward;
    forward.parents = part.parents;
    forward.hooks = &hooks;
    forward.logits_at = models::LogitsAt::kPositions;
    forward.positions = part.reads;
    torch::Tensor input = part.tokens;
    if (first_layer > 0) {
      forward.start_at_layer = first_layer;
      input = residuals.defined() ? residuals.index_select(0, on_device(part.nodes, residuals.device()))
                                  : lower(part);
      input = input.unsqueeze(0);
    }
    const auto logits_nV = adapted->forward(input, forward)[0];
    const auto sum_of_losses = at::cross_entropy_loss(logits_nV, on_device(part.labels, logits_nV.device()),
                                                      {}, at::Reduction::Sum) /
                               static_cast<double>(n_targets);
    const auto some = torch::autograd::grad({sum_of_losses}, leaves);
    loss += sum_of_losses.item<double>();
    if (sum.empty())
      sum = some;
    else
      for (size_t i = 0; i < sum.size(); ++i) sum[i].add_(some[i]);
  }
  return {loss, sum};
}

LoraTrainer::LoraTrainer(std::shared_ptr<const models::Model> model,
                         std::shared_ptr<const models::Adapter> start,
                         const std::vector<LoraExample>& examples, LoraOptions options)
    : state_(std::make_unique<State>(std::move(model), std::move(start), examples, options)) {}

LoraTrainer::~LoraTrainer() = default;
LoraTrainer::LoraTrainer(LoraTrainer&&) noexcept = default;
LoraTrainer& LoraTrainer::operator=(LoraTrainer&&) noexcept = default;

int64_t LoraTrainer::steps() const {
  return state_->steps;
}

LoraStep LoraTrainer::step(const Progress& progress) {
  auto& s = *state_;
  s.run_lower(progress);
  LoraStep out{.step = s.steps, .lr = s.lr()};
  auto [loss, gradient] = s.gradients(s.batch());
  const at::NoGradGuard no_grad;
  std::vector<torch::Tensor> lengths;  // read at once: a device is waited for
  for (const auto& g : gradient) lengths.push_back(g.norm().to(gradient.front().device(), torch::kFloat64));
  const auto lengths_M = at::stack(lengths).cpu();
  double squares = 0;
  for (int64_t m = 0; m < lengths_M.size(0); ++m) squares += std::pow(lengths_M[m].item<double>(), 2);
  out.loss = loss;
  out.gradient_norm = std::sqrt(squares);
  check<Error>(std::isfinite(loss) && std::isfinite(out.gradient_norm), "train_lora: step ", s.steps,
               " has a loss of ", loss, " and a gradient of length ", out.gradient_norm,
               ": the adapter stays as it was before it. A lower lr (now ", out.lr,
               "), weaker injections or a model in float32 may help");
  // As torch.nn.utils.clip_grad_norm_.
  const double clip = s.options.clip > 0 ? std::min(1.0, s.options.clip / (out.gradient_norm + 1e-6)) : 1.0;
  for (size_t i = 0; i < s.matrices.size(); ++i) {
    const auto& m = s.matrices[i];
    ops::adam(m.values, gradient[i], m.first, m.second, {.lr = out.lr}, s.steps + 1, clip);
  }
  ++s.steps;
  report(progress, "train_lora", s.steps, s.options.steps);
  return out;
}

std::pair<double, std::map<std::string, torch::Tensor>> LoraTrainer::gradients(
    const std::vector<int64_t>& examples) {
  check<std::invalid_argument>(!examples.empty(), "train_lora: gradients of no examples");
  state_->run_lower({});
  auto [loss, gradient] = state_->gradients(examples);
  std::map<std::string, torch::Tensor> out;
  for (size_t i = 0; i < gradient.size(); ++i) {
    const auto& m = state_->matrices[i];
    out[m.name] = models::in_file_order(gradient[i], m.order, state_->base->cfg());
  }
  return {loss, out};
}

std::shared_ptr<const models::Adapter> LoraTrainer::adapter() const {
  const at::NoGradGuard no_grad;
  std::map<std::string, models::Adapter::Module> modules;
  for (const auto& m : state_->matrices) {
    const auto dot = m.name.rfind('.');
    auto& module = modules[m.name.substr(0, dot)];
    auto& matrix = m.name.ends_with('A') ? module.A : module.B;
    matrix = models::in_file_order(m.values.detach(), m.order, state_->base->cfg());
  }
  return state_->start->with_matrices(modules);
}

LoraTrainer::Cost LoraTrainer::cost() const {
  const auto& s = *state_;
  Cost out{s.tree.n_tokens(), s.tree.n_nodes(), s.first_layer, 0, s.keeps_residuals};
  for (const auto& m : s.matrices) out.n_params += m.values.numel();
  return out;
}

void LoraTrainer::save(const std::filesystem::path& file) const {
  const auto& s = *state_;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto& m : s.matrices) {
    tensors.emplace_back(m.name, m.values.detach());
    tensors.emplace_back(m.name + ".first", m.first);
    tensors.emplace_back(m.name + ".second", m.second);
  }
  nlohmann::json training = {{"options", options_json(s.options)},
                             {"model", s.base->hash()},
                             {"start", s.start->hash()},
                             {"examples", s.tree.hash()}};
  for (const auto& [name, value] : models::numerics_of(*s.base)) training[name] = value;
  io::save_safetensors(
      file, tensors,
      {{"format", kFormat}, {"training", training.dump()}, {"steps", std::to_string(s.steps)}});
}

void LoraTrainer::resume(const std::filesystem::path& path) {
  auto& s = *state_;
  const auto file = io::SafetensorsFile::open(path);
  const auto who = "train_lora: " + path.string();
  const auto text = [&](const char* key) {
    const auto found = file->metadata().find(key);
    return found == file->metadata().end() ? std::string() : found->second;
  };
  check<IoError>(text("format") == kFormat, who, " is not a training's checkpoint");
  const auto json = parse_json<IoError>(text("training"), who);
  const JsonField<IoError> training(json, who + ": ");
  const auto same = [&](const char* what, const std::string& mine) {
    check<ConfigError>(training.at(what).text() == mine, who, " is of a training with ",
                       what == std::string("start") ? "another start" : concat("another ", what),
                       ": take another file, or delete this one");
  };
  same("model", s.base->hash());
  for (const auto& [what, mine] : models::numerics_of(*s.base)) {
    check<ConfigError>(
        training.has(what), who, " does not tell the model's ", what,
        ", as it is of an earlier version: numbers of two could be mixed. Begin anew in another file");
    const auto held = training.at(what).text();
    check<ConfigError>(held == mine, who, " is of a training with the ", what, " ", excerpt(held), ", not ",
                       excerpt(mine), ": load the model as it was, or take another file");
  }
  same("start", s.start->hash());
  same("examples", s.tree.hash());
  const auto mine = options_json(s.options);
  training.at("options").for_each_field([&](const std::string& name, const JsonField<IoError>& field) {
    check<ConfigError>(mine.contains(name) && field.value() == mine.at(name), who, " is of a training with ",
                       name, " = ", field.value().dump(), ", not ",
                       mine.contains(name) ? mine.at(name).dump() : "that");
  });
  const auto steps_json = parse_json<IoError>(text("steps"), who);
  const auto steps = JsonField<IoError>(steps_json, who + ": steps").integer();
  check<IoError>(steps >= 0 && steps <= s.options.steps, who, ": steps must be 0 to ", s.options.steps,
                 ", got ", steps);
  const at::NoGradGuard no_grad;
  std::vector<std::array<torch::Tensor, 3>> read;
  for (const auto& m : s.matrices) {
    auto& three = read.emplace_back();
    size_t i = 0;
    for (const char* end : {"", ".first", ".second"}) {
      check<IoError>(file->has(m.name + end) && file->shape(m.name + end) == m.values.sizes().vec(), who,
                     ": ", m.name, end, " must be there and ", m.values.sizes());
      three[i++] = file->read(m.name + end, m.values.scalar_type());
    }
  }
  for (size_t i = 0; i < read.size(); ++i) {
    auto& m = s.matrices[i];
    m.values.copy_(read[i][0]);
    m.first.copy_(read[i][1]);
    m.second.copy_(read[i][2]);
  }
  s.steps = steps;
}

}  // namespace introspect::training
