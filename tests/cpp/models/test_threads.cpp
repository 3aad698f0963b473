#include <atomic>
#include <functional>
#include <optional>
#include <thread>
#include <vector>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/core/sole_user.h"
#include "introspect/graph/graph.h"
#include "introspect/models/generate.h"

#include "tiny_model.h"

using namespace introspect;
using testing::tiny_model;

namespace {

/// Runs each job `times` times in a thread of its own, all at the same time.
void together(const std::vector<std::function<void()>>& jobs, int times = 20) {
  std::atomic<int> waiting = static_cast<int>(jobs.size());
  std::vector<std::thread> threads;
  for (const auto& job : jobs)
    threads.emplace_back([&waiting, &job, times] {
      for (--waiting; waiting > 0;) std::this_thread::yield();
      for (int i = 0; i < times; ++i) job();
    });
  for (auto& thread : threads) thread.join();
}

torch::Tensor tokens(int64_t first) {
  return (at::arange(first, first + 6, torch::kLong) % 40).unsqueeze(0);
}

}  // namespace

TEST_CASE("several threads run passes, hooks, recordings and generation on one model", "[threads][models]") {
  const auto model = tiny_model();
  const auto plain = model->forward(tokens(1));
  hooks::Intervention steer{.values = {{1, at::ones({16}, torch::kFloat64)}}, .strength = 3.0};
  auto steering = model->make_hooks();
  steering.add(steer);
  const auto steered = model->forward(tokens(1), {.hooks = &steering});
  const auto text = models::generate(*model, {{1, 2, 3}}, {.max_new_tokens = 4});
  std::atomic<int> wrong = 0;
  const auto expect = [&](bool ok) { wrong += !ok; };
  together({
      [&] { expect(at::equal(model->forward(tokens(1)), plain)); },
      [&] { expect(at::equal(model->forward(tokens(1), {.hooks = &steering}), steered)); },
      [&] {
        auto hooks = model->make_hooks();
        const auto cache = std::make_shared<hooks::ActivationCache>();
        for (const auto& name : hooks.points().names()) hooks.record(name, cache);
        const auto logits = model->forward(tokens(1), {.hooks = &hooks});
        expect(at::equal(logits, plain) && cache->size() == hooks.points().names().size());
      },
      [&] { expect(models::generate(*model, {{1, 2, 3}}, {.max_new_tokens = 4}) == text); },
  });
  CHECK(wrong == 0);
}

TEST_CASE("graphs of their own and forks of one cache are for threads of their own", "[threads][graph]") {
  const auto model = tiny_model();
  auto parent = model->make_cache(1);
  model->forward(tokens(3), {.cache = &parent});
  const auto go_on = [&](int64_t first, cache::KVCache cache) {
    return model->forward(tokens(first), {.cache = &cache});
  };
  const std::vector<torch::Tensor> expected = {go_on(5, parent.fork()), go_on(9, parent.fork())};
  std::vector<cache::KVCache> forks(2, parent);
  const auto run = [&] {
    graph::Graph graph;
    const auto node = graph.segment(model, {1, 2, 3});
    graph.read(node);
    return graph.run().front().values;
  };
  const auto read = run();
  std::atomic<int> wrong = 0;
  together({
      [&] { wrong += !at::equal(go_on(5, forks[0].fork()), expected[0]); },
      [&] { wrong += !at::equal(go_on(9, forks[1].fork()), expected[1]); },
      [&] { wrong += !at::equal(run(), read); },
  });
  CHECK(wrong == 0);
  CHECK(parent.length() == 6);
}

TEST_CASE("an object for one thread at a time refuses a second one, and only while it is used",
          "[threads][core]") {
  const SoleUser user;
  const auto other = [&](std::optional<SoleUser::Use>& use) {
    std::string message;
    std::thread([&] {
      try {
        use.emplace(user.enter("look"));
      } catch (const Error& error) {
        message = error.what();
      }
    }).join();
    return message;
  };
  std::optional<SoleUser::Use> theirs;
  {
    const auto outer = user.enter("outer");
    const auto inner = user.enter("inner");
    CHECK(other(theirs) == "look: another thread is using it; give each thread one of its own");
    const SoleUser copy = user;
    CHECK_NOTHROW(copy.enter("a copy has users of its own"));
  }
  CHECK(other(theirs).empty());
}

TEST_CASE("two threads that append to one cache leave whole passes in it", "[threads][cache]") {
  const auto model = tiny_model();
  auto cache = model->make_cache(1);
  std::atomic<int> passes = 0, refused = 0;
  const auto grow = [&] {
    try {
      model->forward(tokens(1), {.cache = &cache});
      ++passes;
    } catch (const Error&) {
      ++refused;
    }
  };
  together({grow, grow}, 4);
  CHECK(passes + refused == 8);
  CHECK(cache.length() == 6 * passes);
}
