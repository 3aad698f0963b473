#include "experiments/speed.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "introspect/core/check.h"
#include "introspect/models/weights_held.h"

#include "experiments/continuation.h"

namespace introspect::experiments {
namespace {

constexpr double kLeastToOverhead = 5;  // a pass lasts this many times what it costs before its first token
constexpr int64_t kTokens = 128;
constexpr double kSecondsKnown = 60;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <typename Work>
double fastest(const Work& work) {
  double least = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 2; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    least = std::min(least, seconds_since(start));
  }
  return least;
}

Speed time_passes(const graph::ModelPtr& model) {
  const auto& cfg = model->cfg();
  const int64_t n_blocks = std::min<int64_t>(2, cfg.n_layers), many = std::min(kTokens, cfg.n_ctx);
  const auto seconds = [&](int64_t n_tokens) {
    Ids tokens(static_cast<size_t>(n_tokens));
    std::iota(tokens.begin(), tokens.end(), int64_t{0});
    for (auto& token : tokens) token %= cfg.d_vocab;
    graph::Graph graph;
    graph::Read read;
    read.layers = {n_blocks - 1};
    graph.read(graph.segment(model, tokens), read);
    return fastest([&] { graph.run(); });
  };
  const int64_t few = std::max<int64_t>(1, many / 4);
  const double of_many = seconds(many), of_few = seconds(few);
  const auto blocks = static_cast<double>(n_blocks);
  Speed out;
  // What of the time grows with the tokens; at least half of it does, where a busy machine made that unclear.
  out.token_layer = std::max(many > few ? (of_many - of_few) / static_cast<double>(many - few) : 0.0,
                             of_many / static_cast<double>(many) / 2) /
                    blocks;
  out.pass = std::max(0.0, of_few / blocks - static_cast<double>(few) * out.token_layer) *
             static_cast<double>(cfg.n_layers);
  const at::NoGradGuard no_grad;
  constexpr int64_t n_rows = 4;
  const auto wide = model->dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto resid_ND = at::zeros({n_rows, cfg.d_model}, wide);
  out.logits =
      fastest([&] { model->readout(resid_ND).to(torch::kCPU).logsumexp({1}); }) / static_cast<double>(n_rows);
  return out;
}

}  // namespace

int64_t Speed::pass_token_layers(double seconds) const {
  const double running = std::max(seconds, kLeastToOverhead * pass) - pass;
  return std::max<int64_t>(1, std::llround(std::min(running / token_layer, 1e15)));
}

int64_t Speed::as_token_layers(double count) const {
  return std::llround(std::min(count * logits / token_layer, 1e12));
}

double Speed::sampling(int64_t n, int64_t new_tokens, int64_t n_layers) const {
  const auto n_batches = static_cast<double>((n + kMostRows - 1) / kMostRows);
  const double of_one = static_cast<double>(n_layers) * token_layer + logits;
  return static_cast<double>(new_tokens) * (n_batches * pass + static_cast<double>(n) * of_one);
}

void Speed::scale(double factor) {
  for (auto* seconds : {&token_layer, &pass, &logits}) *seconds *= factor;
}

Speed measure_speed(const graph::ModelPtr& model) {
  struct Known {
    std::chrono::steady_clock::time_point when;
    Speed speed;
  };
  static std::mutex mutex;
  static std::map<std::string, Known> known;
  const auto what = concat(model->hash(), " ", c10::toString(model->dtype()), " ",
                           models::to_string(models::weights_held(*model)), " ", model->keeps_blocks(), " ",
                           model->device().str(), " ", at::get_num_threads());
  {
    const std::lock_guard lock(mutex);
    const auto found = known.find(what);
    if (found != known.end() && seconds_since(found->second.when) < kSecondsKnown) return found->second.speed;
  }
  const auto speed = time_passes(model);
  const std::lock_guard lock(mutex);
  known[what] = {std::chrono::steady_clock::now(), speed};
  return speed;
}

}  // namespace introspect::experiments
